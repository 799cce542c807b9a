//! Whatever arrives: a value or an error, never a panic, and a value is written as it is read.

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
        session::parse_join,
    },
    rpc::{
        enrol::EnrolServiceRequest, nameserver::NameServiceRequest, peer::PeerServiceRequest,
        tracker::TrackerServiceRequest,
    },
};

/// Text as an attacker writes it: with the characters that mean something somewhere.
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
    fn texts(text in text()) {
        if let Ok(name) = text.parse::<FileName>() {
            prop_assert_eq!(name.as_str(), &text);
            // It stays below its folder, whatever the folder.
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
    fn errors_are_short_and_harmless_on_a_terminal(text in text()) {
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
    fn tokens_with_one_damage(at in 0_usize..200, byte in any::<u8>()) {
        let token = JoinToken::new(certs::Fingerprint([7; 32]), vec!["10.0.0.1:9090".to_owned()]).unwrap();
        let mut bytes = token.to_string().into_bytes();
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(text) = String::from_utf8(bytes) {
            // Read as what it was, in capitals perhaps, or not at all.
            if let Ok(read) = text.parse::<JoinToken>() {
                prop_assert_eq!(read, token);
            }
        }
    }

    #[test]
    fn headers(bytes in proptest::collection::vec(any::<u8>(), 0..300), length in proptest::option::of(0_u32..100)) {
        // With a length that fits, too, so that the message itself is looked at.
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
            // Not a byte more than it should.
            if read.is_ok() {
                let length = u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                assert_eq!(bytes.len() - rest.len(), 4 + length as usize);
            }
        });
    }

    #[test]
    fn messages(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = postcard::from_bytes::<NameServiceRequest>(&bytes);
        let _ = postcard::from_bytes::<TrackerServiceRequest>(&bytes);
        let _ = postcard::from_bytes::<PeerServiceRequest>(&bytes);
        let _ = postcard::from_bytes::<EnrolServiceRequest>(&bytes);
    }
}

#[tokio::test]
async fn a_header_that_claims_to_be_long_is_not_waited_for() {
    let mut claimed = &[0xff, 0xff, 0xff, 0xff, 0][..];
    let read = read_header::<BulkRequest>(&mut claimed).await;
    assert!(matches!(read, Err(HeaderError::TooLong(_))), "{read:?}");
    assert_eq!(claimed, [0], "its bytes were read");
}

#[test]
fn a_join_token_can_stand_in_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let token = JoinToken::new(certs::Fingerprint([7; 32]), vec!["10.0.0.1:9090".to_owned()]).unwrap();
    std::fs::write(&file, format!("{token}\n")).unwrap();
    assert_eq!(parse_join(&format!("@{}", file.display())), Ok(token.clone()));
    assert_eq!(parse_join(&token.to_string()), Ok(token.clone()));
    // What is wrong is told without repeating what may be a secret.
    let text = token.to_string();
    let error = parse_join(&text[..text.len() - 1]).unwrap_err().to_string();
    assert!(!error.contains(&text[10..30]), "{error}");
    assert!(parse_join("@/no/such/file").unwrap_err().to_string().contains("/no/such/file"));
}
