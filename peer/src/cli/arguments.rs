//! Options and positional arguments of a verb.

use std::collections::BTreeMap;

use shared::error::Failure;

use super::command::Verb;

/// An option of a verb.
pub(crate) struct Opt {
    /// Name, dashes included.
    pub(crate) name: &'static str,
    /// Placeholder of the value in messages; `None` for a flag.
    pub(crate) value: Option<&'static str>,
}

/// Parsed words after a verb.
pub(crate) struct Arguments {
    verb: &'static Verb,
    options: BTreeMap<&'static str, String>,
    /// Words that are not options.
    pub(crate) positionals: Vec<String>,
}

impl Arguments {
    /// Separates the options (`--name value` or `--name=value`) from the positional arguments. All words after `--` are
    /// positional.
    ///
    /// # Errors
    /// `usage` for an option not in `known`, a repeated option, or a missing or superfluous value.
    pub(crate) fn parse(verb: &'static Verb, words: Vec<String>, known: &[Opt]) -> Result<Self, Failure> {
        let mut options = BTreeMap::new();
        let mut positionals = Vec::new();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            if word == "--" {
                positionals.extend(words.by_ref());
                break;
            }
            if !word.starts_with('-') || word == "-" {
                positionals.push(word);
                continue;
            }
            let (name, inline) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (word.as_str(), None),
            };
            let Some(opt) = known.iter().find(|opt| opt.name == name) else {
                let why = format_args!("unknown option {name:?}; write -- before a name that starts with a dash");
                return Err(verb.usage_error(why));
            };
            let value = match (opt.value, inline) {
                (None, None) => String::new(),
                (None, Some(_)) => return Err(verb.usage_error(format_args!("{name} takes no value"))),
                (Some(_), Some(value)) => value,
                (Some(placeholder), None) => words
                    .next()
                    .ok_or_else(|| verb.usage_error(format_args!("{placeholder} is missing after {name}")))?,
            };
            if options.insert(opt.name, value).is_some() {
                return Err(verb.usage_error(format_args!("{name} is given twice")));
            }
        }
        Ok(Self { verb, options, positionals })
    }

    /// Rejects all words after a verb that takes no arguments.
    ///
    /// # Errors
    /// `usage` for any word.
    pub(crate) fn expect_none(verb: &'static Verb, words: Vec<String>) -> Result<(), Failure> {
        match Self::parse(verb, words, &[])?.positionals.first() {
            None => Ok(()),
            Some(word) => Err(verb.usage_error(format_args!("unexpected argument {word:?}"))),
        }
    }

    /// Takes the positional arguments; `placeholder` is their name in messages.
    ///
    /// # Errors
    /// `usage` when there are none or one of them is empty.
    pub(crate) fn take_positionals(&mut self, placeholder: &str) -> Result<Vec<String>, Failure> {
        if self.positionals.is_empty() {
            return Err(self.verb.usage_error(format_args!("{placeholder} is missing")));
        }
        if self.positionals.iter().any(String::is_empty) {
            return Err(self.verb.usage_error(format_args!("{placeholder} is empty")));
        }
        Ok(std::mem::take(&mut self.positionals))
    }

    /// Returns true if the flag is present.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.options.contains_key(name)
    }

    /// Takes the value of an option.
    ///
    /// # Errors
    /// `usage` for an empty value.
    pub(crate) fn take_value(&mut self, name: &'static str) -> Result<Option<String>, Failure> {
        match self.options.remove(name) {
            Some(value) if value.is_empty() => Err(self.verb.usage_error(format_args!("{name} is empty"))),
            value => Ok(value),
        }
    }
}
