//! The words after a verb: options and the rest.

use std::collections::BTreeMap;

use shared::error::Failure;

use super::Verb;

/// An option that a verb has.
pub(crate) struct Opt {
    /// With its dashes.
    pub(crate) name: &'static str,
    /// What its value is called in messages; `None` for a flag.
    pub(crate) value: Option<&'static str>,
}

/// The words after a verb, sorted.
pub(crate) struct Arguments {
    verb: &'static Verb,
    options: BTreeMap<&'static str, String>,
    /// What is not an option.
    pub(crate) rest: Vec<String>,
}

impl Arguments {
    /// Sorts words into the options that `verb` has (`--name value` or `--name=value`) and the rest; after `--`
    /// all is rest.
    pub(crate) fn read(verb: &'static Verb, words: Vec<String>, known: &[Opt]) -> Result<Self, Failure> {
        let mut options = BTreeMap::new();
        let mut rest = Vec::new();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            if word == "--" {
                rest.extend(words.by_ref());
                break;
            }
            if !word.starts_with('-') || word == "-" {
                rest.push(word);
                continue;
            }
            let (name, inline) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (word.as_str(), None),
            };
            let Some(opt) = known.iter().find(|opt| opt.name == name) else {
                return Err(
                    verb.misused(format_args!("no option {name:?}; for a name that begins so write -- before it"))
                );
            };
            let value = match (opt.value, inline) {
                (None, None) => String::new(),
                (None, Some(_)) => return Err(verb.misused(format_args!("{name} takes no value"))),
                (Some(_), Some(value)) => value,
                (Some(what), None) => {
                    words.next().ok_or_else(|| verb.misused(format_args!("{what} is missing after {name}")))?
                }
            };
            if options.insert(opt.name, value).is_some() {
                return Err(verb.misused(format_args!("{name} is said twice")));
            }
        }
        Ok(Self { verb, options, rest })
    }

    /// Refuses anything after a verb that takes nothing.
    pub(crate) fn none(verb: &'static Verb, words: Vec<String>) -> Result<(), Failure> {
        match Self::read(verb, words, &[])?.rest.first() {
            None => Ok(()),
            Some(word) => Err(verb.misused(format_args!("{word:?} is too much"))),
        }
    }

    /// The rest, which must be something; `what` it is called in the message otherwise.
    pub(crate) fn some(&mut self, what: &str) -> Result<Vec<String>, Failure> {
        if self.rest.is_empty() {
            return Err(self.verb.misused(format_args!("{what} is missing")));
        }
        if self.rest.iter().any(String::is_empty) {
            return Err(self.verb.misused(format_args!("{what} is empty")));
        }
        Ok(std::mem::take(&mut self.rest))
    }

    /// Whether a flag was there.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.options.contains_key(name)
    }

    /// The value of an option, not empty.
    pub(crate) fn value(&mut self, name: &'static str) -> Result<Option<String>, Failure> {
        match self.options.remove(name) {
            Some(value) if value.is_empty() => Err(self.verb.misused(format_args!("{name} is empty"))),
            value => Ok(value),
        }
    }
}
