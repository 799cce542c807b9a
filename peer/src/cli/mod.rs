//! The command line: from words to output. A module imports only from rows above its own.
//!
//! | module | content |
//! |---|---|
//! | `report` | a command's result |
//! | `command` | a parsed command, its verb and its outcome |
//! | `arguments`, `suggest`, `shell_words` | parsing: options of a verb, similar words, a line as words |
//! | [`output`] | rendering of outcomes for people and as JSON |
//! | `commands/` | the verbs: parsing and execution |
//! | [`console`], `progress` | standard error: log lines above the prompt, the progress bar |
//! | `source` | the interface of a source of command lines |
//! | `stdin_source`, `prompt` | command lines of standard input, of a terminal |
//! | `session` | execution of the lines of one source |
//! | [`signals`] | signals that end the program |
//! | `control` | the control socket, on which a running peer accepts commands of other processes |
//! | [`app`] | the program: a session, a service, or one command |

pub mod app;
mod arguments;
mod command;
mod commands;
pub mod console;
mod control;
#[cfg(test)]
mod fake_peer;
pub mod output;
pub mod params;
mod progress;
mod prompt;
mod report;
mod session;
mod shell_words;
pub mod signals;
mod source;
mod stdin_source;
mod suggest;
