//! `download NAME[@HASH]…`: fetches files from their owners, or discards unfinished downloads.

use shared::{
    content::HashPrefix,
    error::{Failure, FailureCode},
};

use crate::{
    api::DownloadRequest,
    cli::{
        arguments::{Arguments, Opt},
        command::{Command, CommandContext, Download, Outcome, Verb},
        report::Report,
    },
};

pub(super) static VERB: Verb = Verb {
    name: "download",
    aliases: &[],
    usage: "download NAME[@HASH]... [--from PEER] [--to PATH] [--force] [--explain] [--discard]",
    summary: "fetches files from their owners and verifies them",
    details: "\
NAME can be a directory (docs/) or a glob ('*.rs'). @HASH selects a version by the first digits of its hash, as
`listAll` shows them. An interrupted download resumes where it stopped.
  --from PEER  fetch only from this peer
  --to PATH    write to this file or folder instead of the share
  --force      overwrite existing files that have other content
  --explain    show what limited the rate: an owner's cap, queue or disk, the path, or this peer itself
  --discard    fetch nothing; discard unfinished downloads of NAME and free their disk space",
    parse,
};

fn parse(words: Vec<String>) -> Result<Command, Failure> {
    let known = [
        Opt { name: "--from", value: Some("PEER") },
        Opt { name: "--to", value: Some("PATH") },
        Opt { name: "--force", value: None },
        Opt { name: "--explain", value: None },
        Opt { name: "--discard", value: None },
    ];
    let mut arguments = Arguments::parse(&VERB, words, &known)?;
    let from = match arguments.take_value("--from")? {
        Some(peer) => Some(peer.parse().map_err(|error| VERB.usage_error(error))?),
        None => None,
    };
    let to = arguments.take_value("--to")?;
    let (force, explain) = (arguments.flag("--force"), arguments.flag("--explain"));
    let discard = arguments.flag("--discard");
    if discard && (from.is_some() || to.is_some() || force || explain) {
        return Err(VERB.usage_error("--discard excludes all other options"));
    }
    let files = arguments.take_positionals("NAME")?.into_iter().map(split_version).collect();
    Ok(Command::Download(Download { files, from, to, force, explain, discard }))
}

/// Splits `name@hash` if the text after the last `@` has the form of a hash. Otherwise the whole word is the name
/// (`photo@2x.png`). The peer looks for a file whose own name is the whole word (`x@beef`) first.
fn split_version(word: String) -> (String, Option<HashPrefix>) {
    match word.rsplit_once('@') {
        Some((name, hash)) if !name.is_empty() => match hash.parse() {
            Ok(version) => (name.to_owned(), Some(version)),
            Err(_) => (word, None),
        },
        _ => (word, None),
    }
}

pub(super) async fn run(download: Download, context: &CommandContext<'_>) -> Outcome {
    if download.discard { discard(download, context).await } else { fetch(download, context).await }
}

async fn fetch(download: Download, context: &CommandContext<'_>) -> Outcome {
    if let Err(failure) = check_destination(&download, context) {
        return failure.into();
    }
    let (mut downloaded, mut explained) = (Vec::new(), Vec::new());
    let mut failures = Vec::new();
    for (pattern, version) in download.files {
        let request = DownloadRequest {
            pattern,
            version,
            from: download.from.clone(),
            to: download.to.as_deref().map(|to| context.working_dir.join(to)),
            force: download.force,
            explain: download.explain,
        };
        match context.peer.download(request, context.progress.clone()).await {
            Ok(fetched) => {
                downloaded.extend(fetched.files);
                explained.extend(fetched.explained);
            }
            Err(failure) => failures.push(failure),
        }
    }
    let succeeded = !downloaded.is_empty() || failures.is_empty();
    Outcome::from_parts(succeeded.then_some(Report::Downloaded { files: downloaded, explained }), failures)
}

/// Rejects a download of several files to a destination that is not a folder.
fn check_destination(download: &Download, context: &CommandContext<'_>) -> Result<(), Failure> {
    let Some(to) = &download.to else { return Ok(()) };
    let are_directories = download.files.iter().all(|(name, _)| name.ends_with('/'));
    if download.files.len() <= 1 || are_directories || to.ends_with('/') || context.working_dir.join(to).is_dir() {
        return Ok(());
    }
    let what = "several files cannot be written to one path";
    Err(Failure::new(FailureCode::Usage, what, format!("{to} is not a folder"), "give an existing folder to --to"))
}

async fn discard(download: Download, context: &CommandContext<'_>) -> Outcome {
    let mut discarded = Vec::new();
    let mut failures = Vec::new();
    for (name, version) in download.files {
        match context.peer.discard(&name, version.as_ref()).await {
            Ok(files) => discarded.extend(files),
            Err(failure) => failures.push(failure),
        }
    }
    let succeeded = !discarded.is_empty() || failures.is_empty();
    Outcome::from_parts(succeeded.then_some(Report::Discarded(discarded)), failures)
}
