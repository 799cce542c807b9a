//! `download NAME[@HASH]…`: fetches files from their owners.

use shared::{
    content::HashPrefix,
    error::{Failure, FailureCode},
    id::PeerId,
};

use crate::{
    api::DownloadRequest,
    cli::{
        Call, Command, Outcome, Verb,
        arguments::{Arguments, Opt},
        output::Report,
    },
};

pub(in crate::cli) static VERB: Verb = Verb {
    name: "download",
    aliases: &[],
    usage: "download NAME[@HASH]... [--from PEER] [--to PATH] [--force] [--explain] [--discard]",
    summary: "fetches files, verified, from their owners",
    details: "\
NAME may be a directory (docs/) or a glob ('*.rs'). @HASH chooses a version by the first digits of its hash, as
`listAll` shows them. A download that was interrupted goes on where it was.
  --from PEER  only from this peer
  --to PATH    to this file or folder instead of the share
  --force      overwrite what is there with other content
  --explain    say what limited it: an owner's cap, queue or disk, the path, or this peer itself
  --discard    fetch nothing; give up unfinished downloads of NAME and free their room",
    parse,
};

/// `download`'s arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Download {
    /// What to fetch: names, directories or globs, each with the version wanted.
    pub files: Vec<(String, Option<HashPrefix>)>,
    /// Only from this peer.
    pub from: Option<PeerId>,
    /// Where to, as typed.
    pub to: Option<String>,
    /// Overwrite.
    pub force: bool,
    /// Say what limited it.
    pub explain: bool,
    /// Give up what is unfinished instead.
    pub discard: bool,
}

fn parse(words: Vec<String>) -> Result<Command, Failure> {
    let known = [
        Opt { name: "--from", value: Some("PEER") },
        Opt { name: "--to", value: Some("PATH") },
        Opt { name: "--force", value: None },
        Opt { name: "--explain", value: None },
        Opt { name: "--discard", value: None },
    ];
    let mut arguments = Arguments::read(&VERB, words, &known)?;
    let from = match arguments.value("--from")? {
        Some(peer) => Some(peer.parse().map_err(|error| VERB.misused(error))?),
        None => None,
    };
    let to = arguments.value("--to")?;
    let (force, explain) = (arguments.flag("--force"), arguments.flag("--explain"));
    let discard = arguments.flag("--discard");
    if discard && (from.is_some() || to.is_some() || force || explain) {
        return Err(VERB.misused("--discard goes with no other option"));
    }
    let files = arguments.some("NAME")?.into_iter().map(split_version).collect();
    Ok(Command::Download(Download { files, from, to, force, explain, discard }))
}

/// `name@hash` where what follows the last `@` has the form of a hash; else all of it is the name
/// (`photo@2x.png`). Of a file that is itself called `x@beef` a version must be given: `x@beef@HASH`.
fn split_version(word: String) -> (String, Option<HashPrefix>) {
    match word.rsplit_once('@') {
        Some((name, hash)) if !name.is_empty() => match hash.parse() {
            Ok(version) => (name.to_owned(), Some(version)),
            Err(_) => (word, None),
        },
        _ => (word, None),
    }
}

impl Download {
    pub(in crate::cli) async fn run(self, call: &Call<'_>) -> Outcome {
        if self.discard {
            return self.give_up(call).await;
        }
        if let Some(to) = &self.to
            && self.files.len() > 1
            && self.files.iter().any(|(name, _)| !name.ends_with('/'))
            && !to.ends_with('/')
            && !call.working_dir.join(to).is_dir()
        {
            let why = format!("{to} is no folder");
            let hint = "name a folder that is there with --to";
            return Outcome::of_many(
                None,
                vec![Failure::new(FailureCode::Usage, "several files cannot become one", why, hint)],
            );
        }
        let (mut downloaded, mut explained) = (Vec::new(), Vec::new());
        let mut failures = Vec::new();
        for (pattern, version) in self.files {
            let request = DownloadRequest {
                pattern,
                version,
                from: self.from.clone(),
                to: self.to.as_deref().map(|to| call.working_dir.join(to)),
                force: self.force,
                explain: self.explain,
            };
            match call.backend.download(request, call.progress.clone()).await {
                Ok(fetched) => {
                    downloaded.extend(fetched.files);
                    explained.extend(fetched.explained);
                }
                Err(failure) => failures.push(failure),
            }
        }
        let done = !downloaded.is_empty() || failures.is_empty();
        Outcome::of_many(done.then_some(Report::Downloaded { files: downloaded, explained }), failures)
    }

    async fn give_up(self, call: &Call<'_>) -> Outcome {
        let mut discarded = Vec::new();
        let mut failures = Vec::new();
        for (name, version) in self.files {
            match call.backend.discard(&name, version.as_ref()).await {
                Ok(files) => discarded.extend(files),
                Err(failure) => failures.push(failure),
            }
        }
        let done = !discarded.is_empty() || failures.is_empty();
        Outcome::of_many(done.then_some(Report::Discarded(discarded)), failures)
    }
}
