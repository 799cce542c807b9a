//! Test files, and the state of the page cache and of memory around a measurement.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::Path,
    process::Command,
};

/// Unit in which files are written and compared, bytes.
const BLOCK_BYTES: usize = 1 << 20;
/// Smallest page size of the supported machines, bytes.
const PAGE_BYTES: usize = 4096;

/// Creates a file of `bytes` pseudorandom bytes. The same `seed` gives the same content.
pub fn create(path: &Path, bytes: u64, seed: u64) {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).expect("the directory is writable");
    }
    let mut file = File::create(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut random = fastrand::Rng::with_seed(seed);
    let mut block = vec![0; BLOCK_BYTES];
    let mut remaining = bytes;
    while remaining > 0 {
        random.fill(&mut block);
        let take = usize::try_from(remaining).map_or(BLOCK_BYTES, |remaining| remaining.min(BLOCK_BYTES));
        file.write_all(&block[..take]).expect("the disk has room for the file");
        remaining -= take as u64;
    }
}

/// Creates a small file like [`create`], without the buffer of a megabyte.
pub fn create_small(path: &Path, bytes: u64, seed: u64) {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).expect("the directory is writable");
    }
    let mut content = vec![0; usize::try_from(bytes).expect("the size is addressable")];
    fastrand::Rng::with_seed(seed).fill(&mut content);
    fs::write(path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// Returns the size of a file, bytes.
pub fn size_of(path: &Path) -> u64 {
    fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).len()
}

/// Panics unless both files have the same content.
pub fn assert_same(one: &Path, other: &Path) {
    let open = |path: &Path| File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (mut ones, mut others) = (open(one), open(other));
    let (mut left, mut right) = (vec![0; BLOCK_BYTES], vec![0; BLOCK_BYTES]);
    loop {
        let counts = [read_full(&mut ones, &mut left), read_full(&mut others, &mut right)];
        let [a, b] = counts.map(|result| result.expect("both files are readable"));
        assert!(left[..a] == right[..b], "{} and {} differ", one.display(), other.display());
        if a == 0 {
            return;
        }
    }
}

/// Writes the dirty pages of `folder`'s file system to the disk, so that no measurement pays for an earlier one.
pub fn settle(folder: &Path) {
    let folder = File::open(folder).expect("the directory exists");
    rustix::fs::syncfs(&folder).expect("the file system can be synced");
}

/// Touches `bytes` of memory and frees it. The host of a virtual machine may reclaim pages that the guest has not
/// used for some seconds, and then the first access to each is a page fault on the host, which would distort a
/// measurement.
pub fn touch_memory(bytes: u64) {
    let mut memory = vec![0_u8; usize::try_from(bytes).expect("the size is addressable")];
    for page in memory.chunks_mut(PAGE_BYTES) {
        page[0] = 1;
    }
    std::hint::black_box(memory);
}

/// Returns the type of `folder`'s file system as `stat -f` prints it.
pub fn file_system(folder: &Path) -> String {
    let output = Command::new("stat").args(["-f", "-c", "%T"]).arg(folder).output();
    match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Ok(_) | Err(_) => "file system unknown".to_owned(),
    }
}

fn read_full(file: &mut File, block: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < block.len() {
        match file.read(&mut block[filled..])? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}
