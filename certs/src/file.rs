//! Keys and certificates on disk: one PEM file (RFC 7468) an identity, replaced atomically and readable by its user
//! only.

use std::{
    fs, io,
    io::{Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use rustls::pki_types::{
    CertificateDer, PrivateKeyDer,
    pem::{PemObject, SectionKind},
};

use crate::error::IdentityError;

/// Largest identity file that is read, bytes. A key and two certificates take less than 4 KiB.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// Content of an identity's file: a key, then certificates.
pub(crate) struct StoredPem {
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) certificates: Vec<CertificateDer<'static>>,
}

/// Reads the file at `path`, at most [`MAX_FILE_BYTES`]; `None` when it does not exist.
fn read_bounded(path: &Path) -> Result<Option<Vec<u8>>, IdentityError> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(IdentityError::file(path, error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(|error| IdentityError::file(path, error))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(IdentityError::Malformed(format!("{} is too large", path.display())));
    }
    Ok(Some(bytes))
}

/// Reads the certificates of an identity's file (its own, then its authority's) or of an authority's file, without
/// parsing the key; `None` when the file does not exist.
///
/// # Errors
/// When the file cannot be read or holds no certificate.
pub fn certificates_in(path: &Path) -> Result<Option<Vec<CertificateDer<'static>>>, IdentityError> {
    let Some(bytes) = read_bounded(path)? else { return Ok(None) };
    let certificates = certificates(path, &bytes)?;
    if certificates.is_empty() {
        return Err(IdentityError::Malformed(format!("{} holds no certificate", path.display())));
    }
    Ok(Some(certificates))
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|error| IdentityError::Malformed(format!("{}: {error}", path.display())))
}

impl StoredPem {
    /// Reads the file at `path`; `None` when it does not exist.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, IdentityError> {
        let Some(bytes) = read_bounded(path)? else { return Ok(None) };
        let key = PrivateKeyDer::from_pem_slice(&bytes)
            .map_err(|error| IdentityError::Malformed(format!("{}: {error}", path.display())))?;
        Ok(Some(Self { key, certificates: certificates(path, &bytes)? }))
    }

    /// Replaces the file at `path` atomically.
    pub(crate) fn write(&self, path: &Path) -> Result<(), IdentityError> {
        write_private(path, self.to_pem().as_bytes()).map_err(|error| IdentityError::file(path, error))
    }

    /// Like [`Self::write`], but never replaces an existing file. Returns whether the file was written.
    pub(crate) fn write_new(&self, path: &Path) -> Result<bool, IdentityError> {
        match replace_private(path, self.to_pem().as_bytes(), |temporary| {
            // Unlike a rename, a hard link never replaces an existing file.
            fs::hard_link(temporary, path)?;
            fs::remove_file(temporary)
        }) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(IdentityError::file(path, error)),
        }
    }

    fn to_pem(&self) -> String {
        let mut text = pem_block(SectionKind::PrivateKey, self.key.secret_der());
        for certificate in &self.certificates {
            text.push_str(&pem_block(SectionKind::Certificate, certificate));
        }
        text
    }

    pub(crate) fn clone_key(&self) -> Self {
        Self { key: self.key.clone_key(), certificates: self.certificates.clone() }
    }
}

fn pem_block(kind: SectionKind, der: &[u8]) -> String {
    let label = match kind {
        SectionKind::PrivateKey => "PRIVATE KEY",
        _ => "CERTIFICATE",
    };
    let base64 = data_encoding::BASE64.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    let mut rest = base64.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = more;
    }
    text.push_str(&format!("-----END {label}-----\n"));
    text
}

/// Creates `folder` and its missing parents, accessible by this user only.
pub(crate) fn create_private_folder(folder: &Path) -> Result<(), IdentityError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| IdentityError::file(folder, error))
}

/// Replaces the content of `path` by `bytes`, readable by this user only. The bytes go to a temporary file in the same
/// folder first, so that a crash leaves either the old content or the new one. Durable when it returns.
///
/// # Errors
/// When the file system cannot write the temporary file, rename it or sync the folder; `path` is unchanged then, unless
/// only the sync failed.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_private(path, bytes, |temporary| fs::rename(temporary, path))
}

/// Writes a temporary file beside `path`; `commit` moves it to `path`.
fn replace_private(path: &Path, bytes: &[u8], commit: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    /// Distinguishes the temporary files of this process's threads.
    static WRITES: AtomicU64 = AtomicU64::new(0);

    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy().into_owned();
    let write = WRITES.fetch_add(1, Ordering::Relaxed);
    let temporary = folder.join(format!(".{name}.{}.{write}", std::process::id()));
    // A crashed process with the same id may have left this file, with any access rights.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let written = (|| {
        file.write_all(bytes)?;
        file.sync_all()?;
        commit(&temporary)?;
        fs::File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        // The first error is the one to report. A file that stays behind is hidden and as private as `path`.
        let _ = fs::remove_file(&temporary);
    }
    written
}
