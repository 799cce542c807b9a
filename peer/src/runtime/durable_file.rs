//! File of the election's durable state: version, checksum, state.

use std::{io, path::Path};

use protocol::election::DurableState;
use shared::error::{Failure, FailureCode};

/// Version of the format: one byte, then a checksum, then the state as postcard.
const VERSION: u8 = 2;
/// Length of the checksum, bytes: the beginning of the state's BLAKE3 hash. It detects damage, not manipulation.
const CHECKSUM_BYTES: usize = 8;

/// Stores the state. Durable when it returns.
///
/// # Errors
/// When the file system cannot write the file; the former state is unchanged then, unless only the sync failed.
pub(super) fn store(file: &Path, state: &DurableState) -> io::Result<()> {
    let body = postcard::to_stdvec(state).map_err(io::Error::other)?;
    let mut bytes = vec![VERSION];
    bytes.extend_from_slice(&checksum(&body));
    bytes.extend_from_slice(&body);
    certs::write_private(file, &bytes)
}

/// Reads the durable state of an earlier run, or returns the initial state if the file does not exist.
///
/// # Errors
/// Fails if the file exists and cannot be read or decoded: without its state this peer could vote twice.
pub(super) fn load(file: &Path) -> Result<DurableState, Failure> {
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(DurableState::default()),
        Err(error) => return Err(Failure::unusable(file, &error)),
    };
    decode(&bytes).map_err(|why| {
        Failure::new(
            FailureCode::Io,
            format!("the record of this peer's votes, {}, is damaged", file.display()),
            why,
            "remove the file and start again; that is safe if the nameserver runs and this peer has been down for a \
             minute, since its last vote is decided then",
        )
    })
}

fn decode(bytes: &[u8]) -> Result<DurableState, String> {
    let (version, rest) = bytes.split_first().ok_or("it is empty")?;
    if *version != VERSION {
        return Err(format!("its format {version} is of another version"));
    }
    let (stored, body) = rest.split_at_checked(CHECKSUM_BYTES).ok_or("it is too short")?;
    if stored != checksum(body) {
        return Err("its checksum is wrong".to_owned());
    }
    postcard::from_bytes(body).map_err(|error| error.to_string())
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut checksum = [0; CHECKSUM_BYTES];
    checksum.copy_from_slice(&blake3::hash(body).as_bytes()[..CHECKSUM_BYTES]);
    checksum
}

#[cfg(test)]
mod tests {
    use protocol::election::Vote;
    use shared::epoch::Epoch;

    use super::*;

    fn state() -> DurableState {
        let vote = Vote { epoch: Epoch(7), candidate: "peer1".parse().unwrap() };
        DurableState { voted: Some(vote), epoch_high: Epoch(6) }
    }

    #[test]
    fn durable_state_round_trips() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("election");
        assert_eq!(load(&file).unwrap(), DurableState::default());
        store(&file, &state()).unwrap();
        assert_eq!(load(&file).unwrap(), state());
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_of_the_durable_file_is_an_error_with_a_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("election");
        store(&file, &state()).unwrap();
        let whole = std::fs::read(&file).unwrap();
        let flipped = (0..whole.len() * 8).map(|bit| {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes
        });
        let truncated = (0..whole.len()).map(|length| whole[..length].to_vec());
        for damaged in flipped.chain(truncated) {
            std::fs::write(&file, &damaged).unwrap();
            let failure = load(&file).unwrap_err();
            assert!(failure.what.contains("damaged") && failure.hint.contains("remove the file"), "{failure}");
        }
    }
}
