//! Pack request parser: arbitrary bytes yield a request within its limits, or an error.

#![no_main]

use libfuzzer_sys::fuzz_target;
use shared::{
    limits::{MAX_PACK_BYTES, MAX_PACK_CONTENTS, MAX_PACKED_FILE_BYTES},
    net::pack::PackRequest,
};

fuzz_target!(|bytes: &[u8]| {
    let Ok(request) = PackRequest::parse(bytes) else { return };
    let contents = request.contents().expect("parsing has checked the limits");
    assert!((1..=MAX_PACK_CONTENTS).contains(&contents.len()));
    assert!(contents.iter().all(|(_, size)| *size <= MAX_PACKED_FILE_BYTES));
    assert!(contents.iter().map(|(_, size)| size).sum::<u64>() <= MAX_PACK_BYTES);
    let encoded = postcard::to_stdvec(&request).expect("a request encodes without an error");
    assert_eq!(PackRequest::parse(&encoded).as_ref(), Ok(&request));
});
