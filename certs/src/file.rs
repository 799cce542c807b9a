//! Keys and certificates on disk: one PEM file (RFC 7468) an identity, written whole or not at all, readable
//! by its user only.

use std::{
    fs, io,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
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

impl StoredPem {
    /// The file at `path`; `None` when there is none.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, IdentityError> {
        let bytes = match fs::metadata(path) {
            Ok(metadata) if metadata.len() > MAX_FILE_BYTES => {
                return Err(IdentityError::Malformed(format!("{} is too large", path.display())));
            }
            Ok(_) => fs::read(path).map_err(|error| IdentityError::file(path, error))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(IdentityError::file(path, error)),
        };
        let malformed = |error| IdentityError::Malformed(format!("{}: {error}", path.display()));
        let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(malformed)?;
        let certificates = CertificateDer::pem_slice_iter(&bytes).collect::<Result<_, _>>().map_err(malformed)?;
        Ok(Some(Self { key, certificates }))
    }

    /// Writes the file; either it is there afterwards with all of this, or it is as it was.
    pub(crate) fn write(&self, path: &Path) -> Result<(), IdentityError> {
        let mut text = pem_block(SectionKind::PrivateKey, self.key.secret_der());
        for certificate in &self.certificates {
            text.push_str(&pem_block(SectionKind::Certificate, certificate));
        }
        write_private(path, text.as_bytes()).map_err(|error| IdentityError::file(path, error))
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
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy().into_owned();
    let temporary = folder.join(format!(".{name}.{}", std::process::id()));
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        fs::File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        // The first error is the one to tell; a leftover is hidden and overwritten by the next try.
        let _ = fs::remove_file(&temporary);
    }
    written
}
