//! Text of `nsc`'s answers, in the format of Pyro5's `nsc`.

use shared::{
    name::Tag,
    rpc::nameserver::{NameChange, Record},
};

/// Title of a listing by tags. Pyro5's output has the leading space, too.
pub(crate) const SEARCHED: &str = " - searched by metadata";

/// Renders a listing like Pyro5's `nsc`.
pub(crate) fn listing(records: &[Record], title: &str) -> String {
    let mut text = format!("--------START LIST {title}\n");
    for record in records {
        text.push_str(&format!("{} --> {}\n", record.name, record.uri));
        if !record.tags.is_empty() {
            text.push_str(&format!("    metadata: {}\n", python_set(&record.tags)));
        }
    }
    text.push_str(&format!("--------END LIST {title}\n"));
    text
}

/// Renders a change as one line: `+ NAME --> URI` or `- NAME`.
pub(crate) fn change_line(change: &NameChange) -> String {
    match &change.record {
        Some(record) if record.tags.is_empty() => format!("+ {} --> {}\n", record.name, record.uri),
        Some(record) => format!("+ {} --> {} {}\n", record.name, record.uri, python_set(&record.tags)),
        None => format!("- {}\n", change.name),
    }
}

/// Renders one name like the `lookup` of Pyro5's `nsc`.
pub(crate) fn lookup(record: &Record) -> String {
    let mut text = format!("{}\n", record.uri);
    if !record.tags.is_empty() {
        text.push_str(&format!("metadata: {}\n", python_set(&record.tags)));
    }
    text
}

/// Renders a set like Python: in single quotes, or in double quotes when the text contains single ones only.
fn python_set(tags: &[Tag]) -> String {
    let quoted = tags.iter().map(|tag| {
        let text = tag.as_str().replace('\\', "\\\\");
        match (text.contains('\''), text.contains('"')) {
            (true, false) => format!("\"{text}\""),
            _ => format!("'{}'", text.replace('\'', "\\'")),
        }
    });
    format!("{{{}}}", quoted.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use shared::rpc::nameserver::Revision;

    use super::*;

    fn record(name: &str, tags: &[&str]) -> Record {
        Record {
            name: name.parse().unwrap(),
            uri: "quic://hostname:9999".parse().unwrap(),
            tags: tags.iter().map(|tag| tag.parse().unwrap()).collect(),
            revision: Revision(1),
        }
    }

    #[test]
    fn listing_and_lookup_have_the_format_of_pyro5() {
        assert_eq!(listing(&[], ""), "--------START LIST \n--------END LIST \n");
        assert_eq!(
            listing(&[record("name1", &[]), record("name2", &["a", "b"])], "- regex 'name.$'"),
            "--------START LIST - regex 'name.$'\n\
             name1 --> quic://hostname:9999\n\
             name2 --> quic://hostname:9999\n    metadata: {'a', 'b'}\n\
             --------END LIST - regex 'name.$'\n"
        );
        assert_eq!(lookup(&record("x", &[])), "quic://hostname:9999\n");
        assert_eq!(lookup(&record("x", &["t"])), "quic://hostname:9999\nmetadata: {'t'}\n");
    }

    #[test]
    fn tags_are_quoted_like_python_strings() {
        let set = |tag: &str| python_set(&[tag.parse().unwrap()]);
        assert_eq!(set("it's"), r#"{"it's"}"#);
        assert_eq!(set(r#"say "it's""#), r#"{'say "it\'s"'}"#);
        assert_eq!(set(r"back\slash"), r"{'back\\slash'}");
    }
}
