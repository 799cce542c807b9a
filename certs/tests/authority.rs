//! The authority: its persistence, the privacy of its files, and the certificates that it issues.

#![expect(clippy::unwrap_used, reason = "an unexpected error fails the test")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{
        Arc, Barrier,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use certs::{
    Applicant, Authority, CertificateDer, Fingerprint, Identity, IdentityError, JoinToken, Role, certificates_in,
    public_key_of, role_of, serial_and_expiry_of, trust, validity_of, write_private,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, IsCa, Issuer, KeyPair,
};
use rustls::{
    RootCertStore,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier},
    crypto::aws_lc_rs,
    pki_types::{ServerName, UnixTime},
};

const HOUR: Duration = Duration::from_secs(3600);

fn peer(id: &str) -> Role {
    Role::Peer(id.parse().unwrap())
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Verifies a server's certificate as a member that trusts `authority`, at the time `at` (seconds since 1970).
fn verify(
    authority: &CertificateDer<'static>,
    certificate: &CertificateDer<'_>,
    chain: &[CertificateDer<'_>],
    name: &str,
    at: i64,
) -> Result<(), rustls::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.clone()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
    let at = UnixTime::since_unix_epoch(Duration::from_secs(at.try_into().unwrap()));
    let name = ServerName::try_from(name.to_owned()).unwrap();
    verifier.verify_server_cert(certificate, chain, &name, &[], at).map(|_| ())
}

#[test]
fn authority_loaded_again_is_the_same_and_its_files_are_private() {
    let base = tempfile::tempdir().unwrap();
    let folder = base.path().join("state/nameserver");
    assert!(Authority::load(&folder).unwrap().is_none());
    let first = Authority::load_or_create(&folder).unwrap();
    assert_eq!(mode(&folder), 0o700);
    assert_eq!(mode(&base.path().join("state")), 0o700);
    assert_eq!(mode(&folder.join("authority.pem")), 0o600);

    let second = Authority::load_or_create(&folder).unwrap();
    assert_eq!(first.fingerprint(), second.fingerprint());
    // The key is the same, too: members of the first trust certificates of the second.
    let issued = second.identity(&peer("peer1"), HOUR).unwrap();
    let (begin, _) = validity_of(issued.certificate()).unwrap();
    verify(first.certificate(), issued.certificate(), &[], "peer1.peer.brasa", begin + 1).unwrap();
}

#[test]
fn concurrent_creations_yield_one_authority() {
    let base = tempfile::tempdir().unwrap();
    let start = Barrier::new(8);
    let fingerprints: Vec<Fingerprint> = thread::scope(|scope| {
        let creations: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    Authority::load_or_create(base.path()).unwrap().fingerprint()
                })
            })
            .collect();
        creations.into_iter().map(|creation| creation.join().unwrap()).collect()
    });
    assert!(fingerprints.iter().all(|fingerprint| *fingerprint == fingerprints[0]), "{fingerprints:?}");
    assert_eq!(fs::read_dir(base.path()).unwrap().count(), 1, "temporary files remain");
}

#[test]
fn file_that_is_no_authority_is_rejected_and_unchanged() {
    let base = tempfile::tempdir().unwrap();
    let file = base.path().join("authority.pem");
    let member = base.path().join("member.pem");
    Authority::ephemeral().unwrap().identity(&peer("peer1"), HOUR).unwrap().save(&member).unwrap();
    for wrong in [b"nonsense".to_vec(), Vec::new(), vec![b'x'; 100_000], fs::read(&member).unwrap()] {
        fs::write(&file, &wrong).unwrap();
        assert!(matches!(Authority::load_or_create(base.path()), Err(IdentityError::Malformed(_))));
        assert_eq!(fs::read(&file).unwrap(), wrong);
    }
}

#[test]
fn saved_identity_loads_unchanged_and_is_private() {
    let base = tempfile::tempdir().unwrap();
    let file = base.path().join("identity.pem");
    assert!(Identity::load(&file).unwrap().is_none());
    let authority = Authority::ephemeral().unwrap();
    let saved = authority.identity(&peer("peer1"), HOUR).unwrap();
    saved.save(&file).unwrap();
    assert_eq!(mode(&file), 0o600);
    let loaded = Identity::load(&file).unwrap().unwrap();
    assert_eq!(
        (loaded.role(), loaded.certificate(), loaded.authority()),
        (saved.role(), saved.certificate(), saved.authority())
    );
    trust::member_client(&loaded, &[]).expect("the key belongs to the certificate");

    assert!(!authority.identity(&Role::Admin, HOUR).unwrap().save_new(&file).unwrap());
    assert_eq!(Identity::load(&file).unwrap().unwrap().role(), &peer("peer1"));
}

#[test]
fn key_of_another_certificate_yields_no_tls_configuration() {
    let base = tempfile::tempdir().unwrap();
    let authority = Authority::ephemeral().unwrap();
    let files: Vec<String> = ["a", "b"]
        .iter()
        .map(|id| {
            let file = base.path().join(id);
            authority.identity(&peer(id), HOUR).unwrap().save(&file).unwrap();
            fs::read_to_string(file).unwrap()
        })
        .collect();
    let begin_of_certificates = |text: &str| text.find("-----BEGIN CERTIFICATE").unwrap();
    let (key, _) = files[0].split_at(begin_of_certificates(&files[0]));
    let (_, certificates) = files[1].split_at(begin_of_certificates(&files[1]));
    let file = base.path().join("mixed");
    fs::write(&file, format!("{key}{certificates}")).unwrap();
    let mixed = Identity::load(&file).unwrap().unwrap();
    assert!(trust::member_client(&mixed, &[]).is_err());
    assert!(trust::member_server(&mixed, &[]).is_err());
}

#[test]
fn certificate_verifies_only_in_its_validity_for_its_name_and_authority() {
    let authority = Authority::ephemeral().unwrap();
    // DNS libraries often reject an underscore or a label of 63 characters.
    for id in ["peer1", "lab-3_b", "0", &"x".repeat(63)] {
        let role = peer(id);
        let identity = authority.identity(&role, Duration::from_secs(60)).unwrap();
        let (begin, end) = validity_of(identity.certificate()).unwrap();
        assert_eq!(end, identity.expires_unix_seconds());
        let verified = |name: &str, at| verify(authority.certificate(), identity.certificate(), &[], name, at);
        verified(&role.dns_name(), begin).unwrap();
        verified(&role.dns_name(), end).unwrap();
        for at in [begin - 1, end + 1] {
            let error = verified(&role.dns_name(), at).unwrap_err().to_string();
            assert!(error.contains("expired") || error.contains("not valid yet"), "{error}");
        }
        for other in ["peer2.peer.brasa", "nameserver.brasa", "peer.brasa"] {
            assert!(verified(other, begin).is_err(), "{id} is accepted as {other}");
        }
        let stranger = Authority::ephemeral().unwrap();
        assert!(verify(stranger.certificate(), identity.certificate(), &[], &role.dns_name(), begin).is_err());
    }
}

#[test]
fn serial_numbers_are_unique_and_valid_der_for_every_first_byte() {
    let authority = Authority::ephemeral().unwrap();
    // Among 600 random numbers some begin with a zero byte (which DER omits) or a set high bit (a negative number).
    let mut serials: Vec<String> = (0..600)
        .map(|_| {
            let identity = authority.identity(&Role::Admin, HOUR).unwrap();
            let (begin, _) = validity_of(identity.certificate()).unwrap();
            verify(authority.certificate(), identity.certificate(), &[], "admin.brasa", begin).unwrap();
            serial_and_expiry_of(identity.certificate()).unwrap().0
        })
        .collect();
    serials.sort();
    serials.dedup();
    assert_eq!(serials.len(), 600);
}

#[test]
fn applicant_becomes_the_member_that_its_certificate_names() {
    let authority = Authority::ephemeral().unwrap();
    let applicant = Applicant::new().unwrap();
    let request = applicant.signing_request().unwrap();
    let info = CertificateSigningRequestParams::from_der(&request.as_slice().into()).unwrap();
    let key = rcgen::PublicKeyData::subject_public_key_info(&info.public_key);
    let certificate = authority.certify(&request, &key, &peer("peer1"), HOUR).unwrap();
    assert_eq!(role_of(&certificate).unwrap(), Some(peer("peer1")));
    let member = applicant.into_member(certificate.to_vec(), authority.certificate().to_vec()).unwrap();
    trust::member_client(&member, &[]).unwrap();

    // A certificate over another applicant's key is rejected.
    assert!(Applicant::new().unwrap().into_member(certificate.to_vec(), authority.certificate().to_vec()).is_err());
}

#[test]
fn applicant_that_applies_again_uses_the_same_key() {
    let base = tempfile::tempdir().unwrap();
    let file = base.path().join("newcomer.key");
    let authority = Authority::ephemeral().unwrap();
    let key_of = |applicant: &Applicant| {
        let request = applicant.signing_request().unwrap();
        let info = CertificateSigningRequestParams::from_der(&request.as_slice().into()).unwrap();
        (rcgen::PublicKeyData::subject_public_key_info(&info.public_key), request)
    };
    let (first, request) = key_of(&Applicant::load_or_create(&file).unwrap());
    assert_eq!(mode(&file), 0o600);
    let certificate = authority.certify(&request, &first, &peer("peer1"), HOUR).unwrap();
    // The process lost the answer; the next process completes the enrolment.
    let next = Applicant::load_or_create(&file).unwrap();
    let member = next.into_member(certificate.to_vec(), authority.certificate().to_vec()).unwrap();
    // A member whose certificate has expired keeps its key, too.
    assert_eq!(key_of(&Applicant::again(&member).unwrap()).0, first);
    fs::write(&file, "nonsense").unwrap();
    assert!(matches!(Applicant::load_or_create(&file), Err(IdentityError::Malformed(_))));
}

#[test]
fn signing_request_contributes_only_its_key() {
    let authority = Authority::ephemeral().unwrap();
    let key = KeyPair::generate().unwrap();
    let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
    let mut greedy = CertificateParams::new(vec!["nameserver.brasa".to_owned(), "admin.brasa".to_owned()]).unwrap();
    greedy.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let request = greedy.serialize_request(&key).unwrap();
    let certificate = authority.certify(request.der(), &spki, &peer("peer1"), HOUR).unwrap();
    assert_eq!(role_of(&certificate).unwrap(), Some(peer("peer1")));

    // A certificate that a member signs for another peer is not trusted.
    let (begin, _) = validity_of(&certificate).unwrap();
    let issuer = Issuer::from_ca_cert_der(&certificate, key).unwrap();
    let mut forged = CertificateParams::new(vec!["peer2.peer.brasa".to_owned()]).unwrap();
    forged.not_before = time::OffsetDateTime::from_unix_timestamp(begin).unwrap();
    forged.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let forged = forged.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
    let chain = [certificate];
    assert!(verify(authority.certificate(), forged.der(), &chain, "peer2.peer.brasa", begin).is_err());
}

#[test]
fn damaged_request_or_request_over_another_key_is_rejected() {
    let authority = Authority::ephemeral().unwrap();
    let key = KeyPair::generate().unwrap();
    let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
    let request = CertificateParams::default().serialize_request(&key).unwrap().der().to_vec();
    authority.certify(&request, &spki, &peer("peer1"), HOUR).unwrap();

    let other = rcgen::PublicKeyData::subject_public_key_info(&KeyPair::generate().unwrap());
    assert!(authority.certify(&request, &other, &peer("peer1"), HOUR).is_err(), "over another key");
    for length in 0..request.len() {
        assert!(authority.certify(&request[..length], &spki, &peer("peer1"), HOUR).is_err(), "cut at {length}");
    }
    // Flips bits in the signed part and in the signature. The 15 bytes between them (algorithm and length) carry no
    // content, and DER libraries parse them leniently.
    assert_eq!(request[3..5], [0x30, 0x81], "the signed part has a length of one byte");
    let signed = 6 + usize::from(request[5]);
    for at in (0..signed).chain(signed + 15..request.len()) {
        let mut damaged = request.clone();
        damaged[at] ^= 1;
        assert!(authority.certify(&damaged, &spki, &peer("peer1"), HOUR).is_err(), "bit flipped at {at}");
    }
}

#[test]
fn no_role_of_an_authority_has_the_applicant_name() {
    // The applicant name is not the DNS name of any role.
    assert_eq!(Role::from_dns_name("applicant.brasa"), None);
    assert!(["applicant", "applicant.brasa"].iter().all(|id| peer("x").dns_name() != *id));
    let authority = CertifiedIssuer::self_signed(
        {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params
        },
        KeyPair::generate().unwrap(),
    )
    .unwrap();
    // An authority's certificate names no role, so it identifies no member.
    assert!(trust::caller(&[authority.der().clone()]).is_err());
    assert!(trust::caller(&[]).is_err());
    assert!(trust::caller(&[CertificateDer::from(b"nonsense".to_vec())]).is_err());
}

#[test]
fn debug_output_and_errors_contain_no_secret() {
    let base = tempfile::tempdir().unwrap();
    let file = base.path().join("identity.pem");
    let authority = Authority::ephemeral().unwrap();
    let identity = authority.identity(&peer("peer1"), HOUR).unwrap();
    identity.save(&file).unwrap();
    let token = JoinToken::new(authority.fingerprint(), vec!["10.0.0.1:9090".to_owned()]).unwrap();
    let shown = format!("{identity:?} {token:?} {:?} {:?}", token.proof_key(), authority.fingerprint());
    assert!(shown.contains("peer1"));
    let pem = fs::read_to_string(&file).unwrap();
    for line in pem.lines().filter(|line| !line.starts_with('-')) {
        assert!(!shown.contains(line));
    }
    let text = token.to_string();
    // No ten consecutive characters of the token appear, so its secret does not either.
    for at in 7..text.len() - 10 {
        assert!(!shown.contains(&text[at..at + 10]));
    }
    // The error about a malformed file does not repeat its content.
    fs::write(&file, pem.replace("-----END PRIVATE KEY-----", "")).unwrap();
    let error = format!("{0} {0:?}", Identity::load(&file).unwrap_err());
    assert!(pem.lines().filter(|line| !line.starts_with('-')).all(|line| !error.contains(line)), "{error}");
}

#[test]
fn certificates_in_reads_a_file_without_its_key() {
    let base = tempfile::tempdir().unwrap();
    let file = base.path().join("identity.pem");
    assert!(certificates_in(&file).unwrap().is_none());
    let authority = Authority::ephemeral().unwrap();
    let identity = authority.identity(&peer("peer1"), HOUR).unwrap();
    identity.save(&file).unwrap();
    let certificates = certificates_in(&file).unwrap().unwrap();
    assert_eq!(certificates, [identity.certificate().clone(), authority.certificate().clone()]);
    assert_eq!(public_key_of(&certificates[0]).unwrap(), public_key_of(identity.certificate()).unwrap());
    fs::write(&file, "").unwrap();
    assert!(certificates_in(&file).is_err());
}

#[test]
fn reader_during_a_write_sees_the_old_or_the_new_content() {
    let base = tempfile::tempdir().unwrap();
    let file = base.path().join("secret");
    let contents = [vec![b'a'; 40_000], vec![b'b'; 50_000]];
    write_private(&file, &contents[0]).unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut reads = 0_u32;
            while !done.load(Ordering::Relaxed) || reads == 0 {
                let seen = fs::read(&file).unwrap();
                assert!(contents.contains(&seen), "partial content of {} bytes", seen.len());
                reads += 1;
            }
        });
        for round in 0..100 {
            write_private(&file, &contents[round % 2]).unwrap();
        }
        done.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
    assert_eq!(mode(&file), 0o600);
    assert_eq!(fs::read_dir(base.path()).unwrap().count(), 1, "temporary files remain");
}

#[test]
fn failed_write_leaves_the_target_unchanged_and_no_temporary_file() {
    let base = tempfile::tempdir().unwrap();
    // A folder at the target makes the last step, the rename, fail.
    let taken = base.path().join("taken");
    fs::create_dir_all(taken.join("inside")).unwrap();
    assert!(write_private(&taken, b"secret").is_err());
    assert!(taken.join("inside").is_dir());
    assert_eq!(fs::read_dir(base.path()).unwrap().count(), 1, "a temporary file with the secret remains");
    assert!(write_private(&base.path().join("no/such/folder"), b"secret").is_err());
    assert!(write_private(Path::new("/"), b"secret").is_err());
}

#[test]
fn write_private_restricts_an_existing_readable_file() {
    let base = tempfile::tempdir().unwrap();
    let file = base.path().join("token");
    fs::write(&file, "old").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    write_private(&file, b"new").unwrap();
    assert_eq!((mode(&file), fs::read(&file).unwrap()), (0o600, b"new".to_vec()));
}
