//! Filters of listings, parsed from the requests of callers.

use std::{collections::BTreeSet, ops::Bound};

use crate::params::{MAX_REGEX_BYTES, MAX_REGEX_PROGRAM_BYTES};
use regex::{Regex, RegexBuilder};
use shared::{
    name::{Name, Tag},
    rpc::nameserver::{ListQuery, NameError, TagQuery},
};

use super::change::NameRow;

/// Condition on names.
#[derive(Debug, Clone)]
pub(crate) enum Filter {
    Everything,
    Nothing,
    /// Literal, case-sensitive.
    Prefix(String),
    Regex(Regex),
    All(BTreeSet<Tag>),
    Any(BTreeSet<Tag>),
}

impl Filter {
    pub(crate) fn prefix(text: String) -> Self {
        Self::Prefix(text)
    }

    /// Compiles a regular expression in the syntax of the `regex` crate, which has no look-around and no back
    /// references and therefore matches in linear time.
    ///
    /// # Errors
    /// [`NameError::InvalidQuery`] when the expression is malformed, longer than [`MAX_REGEX_BYTES`], or compiles to
    /// more than [`MAX_REGEX_PROGRAM_BYTES`].
    pub(crate) fn regex(text: &str) -> Result<Self, NameError> {
        if text.len() > MAX_REGEX_BYTES {
            return Err(NameError::InvalidQuery(format!(
                "the regular expression is longer than {MAX_REGEX_BYTES} bytes"
            )));
        }
        RegexBuilder::new(text)
            .size_limit(MAX_REGEX_PROGRAM_BYTES)
            .dfa_size_limit(MAX_REGEX_PROGRAM_BYTES)
            .build()
            .map(Self::Regex)
            .map_err(|error| {
                // The last line names the error; the lines before it mark its position.
                let text = error.to_string();
                let what = text.lines().last().unwrap_or_default();
                NameError::InvalidQuery(format!("not a regular expression: {}", what.trim_start_matches("error: ")))
            })
    }

    /// Matches the text of a name. Conditions on tags match every name here.
    pub(crate) fn matches(&self, name: &Name) -> bool {
        match self {
            Self::Everything | Self::All(_) | Self::Any(_) => true,
            Self::Nothing => false,
            Self::Prefix(prefix) => name.as_str().starts_with(prefix),
            // Anchored at the start like Python's `re.match`: a match there is the leftmost one. Wrapping the text in
            // `^(?:…)` instead would let `a)|(b` and a comment under `(?x)` escape the group.
            Self::Regex(regex) => regex.find(name.as_str()).is_some_and(|found| found.start() == 0),
        }
    }

    pub(super) fn matches_row(&self, name: &Name, row: &NameRow) -> bool {
        match self {
            Self::All(tags) => tags.iter().all(|tag| row.tags.binary_search(tag).is_ok()),
            Self::Any(tags) => row.tags.iter().any(|tag| tags.contains(tag)),
            _ => self.matches(name),
        }
    }
}

/// A parsed request for a page. Callers parse it before they call the registry's actor, because compiling a regular
/// expression takes longer than most commands.
#[derive(Debug, Clone)]
pub struct Query {
    filter: Filter,
    after: Option<Name>,
}

impl TryFrom<ListQuery> for Query {
    type Error = NameError;

    /// Treats an empty text as no filter, as Pyro5 does.
    fn try_from(query: ListQuery) -> Result<Self, NameError> {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let filter = match (given(query.prefix), given(query.regex)) {
            (None, None) => Filter::Everything,
            (Some(prefix), None) => Filter::prefix(prefix),
            (None, Some(regex)) => Filter::regex(&regex)?,
            (Some(_), Some(_)) => {
                return Err(NameError::InvalidQuery("give only one of prefix and regex".into()));
            }
        };
        Ok(Self { filter, after: query.after })
    }
}

impl TryFrom<TagQuery> for Query {
    type Error = NameError;

    fn try_from(query: TagQuery) -> Result<Self, NameError> {
        let parse = |tags: Option<Vec<String>>| {
            let tags = tags.unwrap_or_default().into_iter();
            tags.map(|tag| tag.parse().map_err(NameError::InvalidTag)).collect::<Result<BTreeSet<Tag>, _>>()
        };
        let (all, any) = (parse(query.all)?, parse(query.any)?);
        let filter = match (all.is_empty(), any.is_empty()) {
            (true, true) => Filter::Nothing,
            (false, true) => Filter::All(all),
            (true, false) => Filter::Any(any),
            (false, false) => return Err(NameError::InvalidQuery("give only one of all and any".into())),
        };
        Ok(Self { filter, after: query.after })
    }
}

impl Query {
    /// Condition on the names of the page.
    pub(super) fn filter(&self) -> &Filter {
        &self.filter
    }

    /// First name to look at; `None` when no name can match.
    pub(super) fn start(&self) -> Option<Bound<Name>> {
        let after = self.after.clone().map_or(Bound::Unbounded, Bound::Excluded);
        match &self.filter {
            Filter::Nothing => None,
            Filter::Prefix(prefix) => {
                // A prefix that is not a valid name is not a prefix of one either.
                let first: Name = prefix.parse().ok()?;
                Some(if self.after.as_ref().is_some_and(|after| *after >= first) {
                    after
                } else {
                    Bound::Included(first)
                })
            }
            _ => Some(after),
        }
    }
}
