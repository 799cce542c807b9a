//! What an asker may send at the beginning of a pack: any bytes give a request within its bounds, or an error.

#![no_main]

use libfuzzer_sys::fuzz_target;
use shared::{
    limits::{MAX_PACK_BYTES, MAX_PACK_CONTENTS, MAX_PACKED_FILE_BYTES},
    net::pack::PackRequest,
};

fuzz_target!(|bytes: &[u8]| {
    let Ok(request) = PackRequest::parse(bytes) else { return };
    let contents = request.contents().expect("it was parsed with its bounds");
    assert!((1..=MAX_PACK_CONTENTS).contains(&contents.len()));
    assert!(contents.iter().all(|(_, size)| *size <= MAX_PACKED_FILE_BYTES));
    assert!(contents.iter().map(|(_, size)| size).sum::<u64>() <= MAX_PACK_BYTES);
    let written = postcard::to_stdvec(&request).expect("it can be written");
    assert_eq!(PackRequest::parse(&written).as_ref(), Ok(&request));
});
