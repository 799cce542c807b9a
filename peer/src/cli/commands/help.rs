//! `help`: the commands.

use shared::error::Failure;

use crate::cli::{
    Command, VERBS, Verb,
    arguments::Arguments,
    output::{CommandHelp, Report},
    unknown_command,
};

pub(in crate::cli) static VERB: Verb = Verb {
    name: "help",
    aliases: &[],
    usage: "help [COMMAND]",
    summary: "the commands, or one of them",
    details: "",
    parse,
};

/// `help`'s arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Help {
    /// The verb to explain; all of them when not given.
    pub verb: Option<&'static str>,
}

fn parse(words: Vec<String>) -> Result<Command, Failure> {
    let arguments = Arguments::read(&VERB, words, &[])?;
    let verb = match arguments.rest.as_slice() {
        [] => None,
        [word] => Some(Verb::named(word).ok_or_else(|| unknown_command(word))?.name),
        [_, more, ..] => return Err(VERB.misused(format_args!("{more:?} is too much"))),
    };
    Ok(Command::Help(Help { verb }))
}

impl Help {
    /// Needs no peer.
    pub(in crate::cli) fn run(&self) -> Report {
        let chosen = VERBS.iter().filter(|verb| self.verb.is_none_or(|name| name == verb.name));
        let commands = chosen.map(|verb| CommandHelp {
            name: verb.name,
            aliases: verb.aliases,
            usage: verb.usage,
            summary: verb.summary,
            details: verb.details,
        });
        Report::Help(commands.collect())
    }
}
