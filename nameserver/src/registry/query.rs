//! Listings: which names, and a page at a time.

use std::{collections::BTreeSet, ops::Bound};

use regex::{Regex, RegexBuilder};
use shared::{
    limits::{MAX_REGEX_BYTES, MAX_REGEX_PROGRAM_BYTES, NAMES_PER_PAGE, NAMES_SCANNED_PER_PAGE, PAGE_BYTES},
    name::{Name, Tag},
    rpc::nameserver::{ListQuery, NameError, Page, Record, TagQuery},
    time::Timestamp,
};

use super::{NameRow, Registry};

/// Which names are meant.
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

    /// A regular expression in the syntax of the `regex` crate (no look-around, no back references: what it
    /// understands it matches in linear time).
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
                // The last line says what is wrong; those before it point at where, in a drawing.
                let text = error.to_string();
                let what = text.lines().last().unwrap_or_default();
                NameError::InvalidQuery(format!("not a regular expression: {}", what.trim_start_matches("error: ")))
            })
    }

    /// Whether the name is meant, as far as its text tells.
    pub(crate) fn matches(&self, name: &Name) -> bool {
        match self {
            Self::Everything | Self::All(_) | Self::Any(_) => true,
            Self::Nothing => false,
            Self::Prefix(prefix) => name.as_str().starts_with(prefix),
            // Anchored at the start as Python's `re.match`: if anything matches there, the leftmost match does.
            // (Wrapping the text in `^(?:…)` would let `a)|(b` and a comment under `(?x)` break out.)
            Self::Regex(regex) => regex.find(name.as_str()).is_some_and(|found| found.start() == 0),
        }
    }

    fn matches_row(&self, name: &Name, row: &NameRow) -> bool {
        match self {
            Self::All(tags) => tags.iter().all(|tag| row.tags.binary_search(tag).is_ok()),
            Self::Any(tags) => row.tags.iter().any(|tag| tags.contains(tag)),
            _ => self.matches(name),
        }
    }
}

/// A parsed request for a page. Parsing happens before the owner of the registry is asked, for compiling a
/// regular expression takes longer than most calls.
#[derive(Debug, Clone)]
pub struct Query {
    filter: Filter,
    after: Option<Name>,
}

impl TryFrom<ListQuery> for Query {
    type Error = NameError;

    /// An empty filter is none, as in Pyro5.
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

impl Registry {
    /// A page of names, in order. Ends after [`NAMES_PER_PAGE`] names, [`PAGE_BYTES`], or
    /// [`NAMES_SCANNED_PER_PAGE`] names looked at: a page can be short, even empty, and still have a next one.
    pub fn page(&self, now: Timestamp, query: &Query) -> Page {
        let mut page = Page { records: Vec::new(), next: None, revision: self.revision() };
        let Some(start) = query.start() else { return page };
        let mut bytes = 0;
        let mut last: Option<&Name> = None;
        for (scanned, (name, row)) in self.tables.names_from(start.as_ref()).enumerate() {
            if let Filter::Prefix(prefix) = &query.filter
                && !name.as_str().starts_with(prefix)
            {
                return page;
            }
            if scanned == NAMES_SCANNED_PER_PAGE {
                page.next = last.cloned();
                return page;
            }
            if query.filter.matches_row(name, row) && self.live(name, now).is_some() {
                let record = row.record(name);
                bytes += record_bytes(&record);
                if page.records.len() == NAMES_PER_PAGE || bytes > PAGE_BYTES {
                    page.next = last.cloned();
                    return page;
                }
                page.records.push(record);
            }
            last = Some(name);
        }
        page
    }
}

impl Query {
    /// Whether the name is meant, as far as its text tells.
    pub(super) fn matches(&self, name: &Name) -> bool {
        self.filter.matches(name)
    }

    /// Where to begin; `None` when nothing can match.
    fn start(&self) -> Option<Bound<Name>> {
        let after = self.after.clone().map_or(Bound::Unbounded, Bound::Excluded);
        match &self.filter {
            Filter::Nothing => None,
            Filter::Prefix(prefix) => {
                // What cannot be a name begins none either.
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

/// Bytes of a record in a page, at most: its texts, and up to five bytes of length before each; ten for its
/// revision and as many for the number of its tags (postcard's varints).
pub(super) fn record_bytes(record: &Record) -> usize {
    let tags: usize = record.tags.iter().map(|tag| tag.as_str().len() + 5).sum();
    record.name.as_str().len() + record.uri.to_string().len() + tags + 30
}
