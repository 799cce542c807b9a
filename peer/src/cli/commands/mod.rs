//! The verbs: parsing of each command, and its execution on a [`PeerApi`](crate::api::PeerApi).

mod add;
mod download;
mod queries;
mod remove;
mod stop;

use shared::error::{Failure, FailureCode};

use super::{
    arguments::Arguments,
    command::{Command, CommandContext, Outcome, Verb},
    report::{CommandHelp, Report},
    suggest,
};

/// All verbs, in the order of `help`.
pub(crate) static VERBS: [&Verb; 12] = [
    &queries::LIST,
    &queries::LIST_ALL,
    &add::VERB,
    &remove::VERB,
    &download::VERB,
    &queries::TRACKER,
    &queries::PEERS,
    &queries::ELECT,
    &queries::STATUS,
    &HELP,
    &stop::KILL,
    &stop::EXIT,
];

/// Characters of an unknown verb that the message repeats.
const MAX_SHOWN_CHARS: usize = 40;

static HELP: Verb = Verb {
    name: "help",
    aliases: &[],
    usage: "help [COMMAND]",
    summary: "lists the commands or explains one",
    details: "",
    parse: parse_help,
};

/// Parses a command, which starts with its verb.
///
/// # Errors
/// `unknown_command`, with similar verbs, and `usage`, with the verb's synopsis.
pub(crate) fn parse(words: Vec<String>) -> Result<Command, Failure> {
    let mut words = words.into_iter();
    let Some(word) = words.next() else {
        return Err(Failure::new(FailureCode::Usage, "no command", "the line is empty", "`help` lists the commands"));
    };
    let verb = find(&word)?;
    let rest: Vec<String> = words.collect();
    if rest.iter().take_while(|word| *word != "--").any(|word| word == "--help") {
        return Ok(Command::Help { verb: Some(verb.name) });
    }
    (verb.parse)(rest)
}

/// Executes a command. Dropping the future stops it.
pub(crate) async fn execute(command: Command, context: CommandContext<'_>) -> Outcome {
    match command {
        Command::List => queries::list(&context).await.into(),
        Command::ListAll => queries::list_all(&context).await.into(),
        Command::Add { paths } => add::run(paths, &context).await,
        Command::Remove { names } => remove::run(names, &context).await,
        Command::Download(download) => download::run(download, &context).await,
        Command::Tracker => queries::tracker(&context).await.into(),
        Command::Peers => queries::peers(&context).await.into(),
        Command::Elect => queries::elect(&context).await.into(),
        Command::Status => queries::status(&context).await.into(),
        Command::Help { verb } => Ok(help(verb)).into(),
        Command::Kill => stop::kill(context.peer.id()),
        Command::Exit => stop::exit(context.peer.id()),
    }
}

/// Describes one verb, or all of them. Needs no peer.
pub(crate) fn help(verb: Option<&'static str>) -> Report {
    let chosen = VERBS.iter().filter(|candidate| verb.is_none_or(|name| name == candidate.name));
    let commands = chosen.map(|verb| CommandHelp {
        name: verb.name,
        aliases: verb.aliases,
        usage: verb.usage,
        summary: verb.summary,
        details: verb.details,
    });
    Report::Help(commands.collect())
}

fn parse_help(words: Vec<String>) -> Result<Command, Failure> {
    let arguments = Arguments::parse(&HELP, words, &[])?;
    let verb = match arguments.positionals.as_slice() {
        [] => None,
        [word] => Some(find(word)?.name),
        [_, more, ..] => return Err(HELP.usage_error(format_args!("unexpected argument {more:?}"))),
    };
    Ok(Command::Help { verb })
}

fn find(word: &str) -> Result<&'static Verb, Failure> {
    let verb = VERBS.into_iter().find(|verb| verb.names().any(|name| name == word));
    verb.ok_or_else(|| unknown_command(word))
}

fn unknown_command(word: &str) -> Failure {
    let similar = suggest::nearest(word, VERBS.into_iter().flat_map(Verb::names));
    let hint = if similar.is_empty() {
        "`help` lists the commands".to_owned()
    } else {
        format!("did you mean {}? `help` lists the commands", similar.join(" or "))
    };
    let shown: String = word.chars().take(MAX_SHOWN_CHARS).collect();
    Failure::new(FailureCode::UnknownCommand, format!("unknown command {shown:?}"), "no such command exists", hint)
}

#[cfg(test)]
mod tests;
