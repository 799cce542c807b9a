//! Property tests of the parsers: arbitrary input yields a value or an error, never a panic, and values round-trip.

use std::path::Path;

use certs::JoinToken;
use proptest::prelude::*;
use shared::{
    file_name::FileName,
    limits,
    name::{Endpoint, Name, Tag},
    net::{
        bulk::{BulkAccepted, BulkRefusal, BulkRequest, HeaderError, read_header},
        pack::PackRequest,
    },
    rpc::{
        enrol::EnrolServiceRequest, nameserver::NameServiceRequest, peer::PeerServiceRequest,
        tracker::TrackerServiceRequest,
    },
};

/// Strategy for hostile text, rich in characters with a special meaning.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[a-zA-Z0-9./:\\[\\]@ \\\\-]{0,40}",
        "(quic://)?[\\[\\]0-9a-f:.]{0,30}(:[0-9]{0,7})?",
        "brasa1-[a-z2-7]{0,200}",
        "(\\.\\./|[a-z]{1,5}/|/|con|\u{202e}|\u{0}|\u{1b}|\\.| ){0,12}",
        "[a€😀]{100,400}",
    ]
}

proptest! {
    #[test]
    fn arbitrary_text_parses_to_a_safe_value_or_an_error(text in text()) {
        if let Ok(name) = text.parse::<FileName>() {
            prop_assert_eq!(name.as_str(), &text);
            // The path stays below its directory.
            let path = name.below(Path::new("/share"));
            prop_assert!(path.starts_with("/share") && path != Path::new("/share"));
            prop_assert!(path.components().all(|part| part != std::path::Component::ParentDir));
            prop_assert!(!text.chars().any(char::is_control) && text.len() <= limits::MAX_FILE_NAME_BYTES);
        }
        if let Ok(name) = text.parse::<Name>() {
            prop_assert_eq!(name.as_str(), &text);
            prop_assert!(!text.is_empty() && text.len() <= limits::MAX_NAME_BYTES);
            let _ = (name.as_peer(), name.as_tracker());
        }
        if let Ok(tag) = text.parse::<Tag>() {
            prop_assert_eq!(tag.as_str(), &text);
        }
        for endpoint in [text.parse::<Endpoint>(), Endpoint::from_host_port(&text)].into_iter().flatten() {
            prop_assert_ne!(endpoint.port, 0);
            prop_assert_eq!(endpoint.to_string().parse(), Ok(endpoint.clone()));
            prop_assert_eq!(Endpoint::from_host_port(&endpoint.host_port()), Ok(endpoint));
        }
        if let Ok(token) = text.parse::<JoinToken>() {
            prop_assert_eq!(token.to_string().parse(), Ok(token));
        }
        let _ = FileName::from_relative_path(Path::new(&text));
    }

    #[test]
    fn error_messages_are_short_and_free_of_control_characters(text in text()) {
        let errors = [
            text.parse::<FileName>().err().map(|error| error.to_string()),
            text.parse::<Name>().err().map(|error| error.to_string()),
            text.parse::<Endpoint>().err().map(|error| error.to_string()),
            text.parse::<JoinToken>().err().map(|error| error.to_string()),
        ];
        for error in errors.into_iter().flatten() {
            prop_assert!(!error.chars().any(char::is_control), "{error:?}");
            prop_assert!(error.chars().count() < 1200);
        }
    }

    #[test]
    fn token_with_one_changed_byte_is_equal_or_rejected(at in 0_usize..200, byte in any::<u8>()) {
        let token = JoinToken::new(certs::Fingerprint([7; 32]), vec!["10.0.0.1:9090".to_owned()]).unwrap();
        let mut bytes = token.to_string().into_bytes();
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(text) = String::from_utf8(bytes) {
            // A change of case yields the same token; the checksum detects every other change.
            if let Ok(read) = text.parse::<JoinToken>() {
                prop_assert_eq!(read, token);
            }
        }
    }

    #[test]
    fn arbitrary_header_parses_within_its_bounds_or_fails(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
        length in proptest::option::of(0_u32..100),
    ) {
        // A plausible length prefix makes the parser reach the message.
        let bytes = match length {
            Some(length) => [&length.to_be_bytes(), bytes.as_slice()].concat(),
            None => bytes,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let _ = read_header::<BulkRequest>(&mut bytes.as_slice()).await;
            if let Ok(pack) = PackRequest::parse(&bytes) {
                assert!(pack.contents().is_ok());
            }
            let mut rest = bytes.as_slice();
            let read = read_header::<Result<BulkAccepted, BulkRefusal>>(&mut rest).await;
            // The parser consumes exactly one message.
            if read.is_ok() {
                let length = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                assert_eq!(bytes.len() - rest.len(), 4 + length as usize);
            }
        });
    }

    #[test]
    fn arbitrary_message_decodes_or_fails_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = postcard::from_bytes::<NameServiceRequest>(&bytes);
        let _ = postcard::from_bytes::<TrackerServiceRequest>(&bytes);
        let _ = postcard::from_bytes::<PeerServiceRequest>(&bytes);
        let _ = postcard::from_bytes::<EnrolServiceRequest>(&bytes);
    }
}

#[tokio::test]
async fn header_with_an_excessive_length_is_rejected_before_its_body() {
    let mut claimed = &[0xff, 0xff, 0xff, 0xff, 0][..];
    let read = read_header::<BulkRequest>(&mut claimed).await;
    assert!(matches!(read, Err(HeaderError::TooLong(_))), "{read:?}");
    assert_eq!(claimed, [0], "the parser read a byte of the body");
}
