//! Files to move, and what is done with file systems around a measurement.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::Path,
    process::Command,
};

const BLOCK_BYTES: usize = 1 << 20;
/// The smallest page of any machine.
const PAGE_BYTES: usize = 4096;

/// Makes a file of `bytes` random bytes; the same `seed` makes the same file.
pub fn make(path: &Path, bytes: u64, seed: u64) {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).expect("the file's folder can be made");
    }
    let mut file = File::create(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut random = fastrand::Rng::with_seed(seed);
    let mut block = vec![0; BLOCK_BYTES];
    let mut left = bytes;
    while left > 0 {
        random.fill(&mut block);
        let take = usize::try_from(left).map_or(BLOCK_BYTES, |left| left.min(BLOCK_BYTES));
        file.write_all(&block[..take]).expect("room for the file");
        left -= take as u64;
    }
}

/// Fails the benchmark unless both files have the same bytes.
pub fn assert_same(one: &Path, other: &Path) {
    let open = |path: &Path| File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (mut ones, mut others) = (open(one), open(other));
    let (mut left, mut right) = (vec![0; BLOCK_BYTES], vec![0; BLOCK_BYTES]);
    loop {
        let took = [read_full(&mut ones, &mut left), read_full(&mut others, &mut right)];
        let [a, b] = took.map(|result| result.expect("readable files"));
        assert!(left[..a] == right[..b], "{} and {} differ", one.display(), other.display());
        if a == 0 {
            return;
        }
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

/// Writes everything that waits in memory to the disk of `folder`'s file system, so that one run does not pay for
/// what another left.
pub fn settle(folder: &Path) {
    let folder = File::open(folder).expect("the folder is there");
    rustix::fs::syncfs(&folder).expect("its file system can be synced");
}

/// Touches so much memory and gives it back, so that the pages which come next are there. A virtual machine's host may have
/// taken back those that were free for some seconds: the first touch of each is then a fault at the host.
pub fn touch_memory(bytes: u64) {
    let mut memory = vec![0_u8; usize::try_from(bytes).expect("memory that this machine can address")];
    for page in memory.chunks_mut(PAGE_BYTES) {
        page[0] = 1;
    }
    std::hint::black_box(memory);
}

/// The type of the file system that `folder` is on, as `stat -f` calls it.
pub fn file_system(folder: &Path) -> String {
    let said = Command::new("stat").args(["-f", "-c", "%T"]).arg(folder).output();
    match said {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        Ok(_) | Err(_) => "file system unknown".to_owned(),
    }
}

/// As [`make`] for many small files: without a block of a megabyte for each.
pub fn make_small(path: &Path, bytes: u64, seed: u64) {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).expect("the file's folder can be made");
    }
    let mut content = vec![0; usize::try_from(bytes).expect("a small file")];
    fastrand::Rng::with_seed(seed).fill(&mut content);
    fs::write(path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}
