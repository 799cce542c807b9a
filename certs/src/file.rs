//! Keys and certificates on disk: one PEM file (RFC 7468) an identity, written whole or not at all, readable
//! by its user only.

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

use crate::identity::IdentityError;

/// Largest identity file that is read, bytes: a key and two certificates are below 4 KiB.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// What an identity's file holds: a key, then certificates.
pub(crate) struct StoredPem {
    pub(crate) key: PrivateKeyDer<'static>,
    pub(crate) certificates: Vec<CertificateDer<'static>>,
}

/// The file at `path`, if it is there and not larger than an identity can be.
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

/// The certificates in the file of an identity (its own, then its authority's) or of an authority; the key is
/// not looked at. `None` when there is no such file.
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
    /// The file at `path`; `None` when there is none.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, IdentityError> {
        let Some(bytes) = read_bounded(path)? else { return Ok(None) };
        let key = PrivateKeyDer::from_pem_slice(&bytes)
            .map_err(|error| IdentityError::Malformed(format!("{}: {error}", path.display())))?;
        Ok(Some(Self { key, certificates: certificates(path, &bytes)? }))
    }

    /// Writes the file; either it is there afterwards with all of this, or it is as it was.
    pub(crate) fn write(&self, path: &Path) -> Result<(), IdentityError> {
        write_private(path, self.to_pem().as_bytes()).map_err(|error| IdentityError::file(path, error))
    }

    /// As [`Self::write`], but only if there is no such file yet; whether it was written.
    pub(crate) fn write_new(&self, path: &Path) -> Result<bool, IdentityError> {
        match replace_private(path, self.to_pem().as_bytes(), |temporary| {
            // Unlike a renaming, a link never replaces what is there.
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

/// Makes `folder` and what is above it, for this user only.
pub(crate) fn create_private_folder(folder: &Path) -> Result<(), IdentityError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| IdentityError::file(folder, error))
}

/// Writes `bytes` to `path`, readable by this user only, by way of a temporary file beside it, so that a crash
/// leaves the old content or the new one. Durable when it returns.
///
/// # Errors
/// Whatever the file system says.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_private(path, bytes, |temporary| fs::rename(temporary, path))
}

/// Writes a temporary file and lets `place` bring it to where it belongs.
fn replace_private(path: &Path, bytes: &[u8], place: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    /// Tells the temporary files of one process's threads apart.
    static WRITES: AtomicU64 = AtomicU64::new(0);

    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy().into_owned();
    let write = WRITES.fetch_add(1, Ordering::Relaxed);
    let temporary = folder.join(format!(".{name}.{}.{write}", std::process::id()));
    // A crashed process of the same number may have left one, with whatever rights.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    let written = (|| {
        file.write_all(bytes)?;
        file.sync_all()?;
        place(&temporary)?;
        fs::File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        // The first error is the one to tell; a leftover is hidden and holds nothing that `path` would not.
        let _ = fs::remove_file(&temporary);
    }
    written
}
