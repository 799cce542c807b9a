//! What an authority promises: it stays the same, its files are private, and it certifies nothing but what it was asked.

#![expect(clippy::unwrap_used, reason = "tests, helpers included, end where something is not as it should be")]

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

/// What a member that trusts `authority` says of a server's certificate at a time (seconds since 1970).
fn judge(
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
fn an_authority_stays_the_same_and_its_files_are_private() {
    let base = tempfile::tempdir().unwrap();
    let folder = base.path().join("state/nameserver");
    assert!(Authority::load(&folder).unwrap().is_none());
    let first = Authority::load_or_create(&folder).unwrap();
    assert_eq!(mode(&folder), 0o700);
    assert_eq!(mode(&base.path().join("state")), 0o700);
    assert_eq!(mode(&folder.join("authority.pem")), 0o600);

    let second = Authority::load_or_create(&folder).unwrap();
    assert_eq!(first.fingerprint(), second.fingerprint());
    // The key is the same, too: what one issues the other's members trust.
    let issued = second.identity(&peer("peer1"), HOUR).unwrap();
    let (begin, _) = validity_of(issued.certificate()).unwrap();
    judge(first.certificate(), issued.certificate(), &[], "peer1.peer.brasa", begin + 1).unwrap();
}

#[test]
fn of_many_that_start_at_once_all_get_one_authority() {
    let base = tempfile::tempdir().unwrap();
    let start = Barrier::new(8);
    let fingerprints: Vec<Fingerprint> = thread::scope(|scope| {
        let tries: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    Authority::load_or_create(base.path()).unwrap().fingerprint()
                })
            })
            .collect();
        tries.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert!(fingerprints.iter().all(|one| *one == fingerprints[0]), "{fingerprints:?}");
    assert_eq!(fs::read_dir(base.path()).unwrap().count(), 1, "temporary files were left");
}

#[test]
fn what_is_not_an_authority_is_refused_and_left_alone() {
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
fn an_identity_is_read_as_it_was_kept_and_only_by_its_user() {
    let base = tempfile::tempdir().unwrap();
    let file = base.path().join("identity.pem");
    assert!(Identity::load(&file).unwrap().is_none());
    let authority = Authority::ephemeral().unwrap();
    let kept = authority.identity(&peer("peer1"), HOUR).unwrap();
    kept.save(&file).unwrap();
    assert_eq!(mode(&file), 0o600);
    let read = Identity::load(&file).unwrap().unwrap();
    assert_eq!(
        (read.role(), read.certificate(), read.authority()),
        (kept.role(), kept.certificate(), kept.authority())
    );
    trust::member_client(&read, &[]).expect("the key belongs to the certificate");

    assert!(!authority.identity(&Role::Admin, HOUR).unwrap().save_new(&file).unwrap());
    assert_eq!(Identity::load(&file).unwrap().unwrap().role(), &peer("peer1"));
}

#[test]
fn a_key_of_another_certificate_is_no_identity() {
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
fn a_certificate_is_valid_in_its_time_for_its_name_and_by_its_authority_only() {
    let authority = Authority::ephemeral().unwrap();
    // An underscore and 63 characters are what DNS libraries like to stumble over.
    for id in ["peer1", "lab-3_b", "0", &"x".repeat(63)] {
        let role = peer(id);
        let identity = authority.identity(&role, Duration::from_secs(60)).unwrap();
        let (begin, end) = validity_of(identity.certificate()).unwrap();
        assert_eq!(end, identity.expires_unix_seconds());
        let judged = |name: &str, at| judge(authority.certificate(), identity.certificate(), &[], name, at);
        judged(&role.dns_name(), begin).unwrap();
        judged(&role.dns_name(), end).unwrap();
        for at in [begin - 1, end + 1] {
            let error = judged(&role.dns_name(), at).unwrap_err().to_string();
            assert!(error.contains("expired") || error.contains("not valid yet"), "{error}");
        }
        for other in ["peer2.peer.brasa", "nameserver.brasa", "peer.brasa"] {
            assert!(judged(other, begin).is_err(), "{id} passes for {other}");
        }
        let stranger = Authority::ephemeral().unwrap();
        assert!(judge(stranger.certificate(), identity.certificate(), &[], &role.dns_name(), begin).is_err());
    }
}

#[test]
fn serial_numbers_are_random_and_certificates_readable_whatever_they_begin_with() {
    let authority = Authority::ephemeral().unwrap();
    // Of 600 random ones some begin with a zero byte (DER would not write it) or a high bit (it would be negative).
    let mut serials: Vec<String> = (0..600)
        .map(|_| {
            let identity = authority.identity(&Role::Admin, HOUR).unwrap();
            let (begin, _) = validity_of(identity.certificate()).unwrap();
            judge(authority.certificate(), identity.certificate(), &[], "admin.brasa", begin).unwrap();
            serial_and_expiry_of(identity.certificate()).unwrap().0
        })
        .collect();
    serials.sort();
    serials.dedup();
    assert_eq!(serials.len(), 600);
}

#[test]
fn a_newcomer_becomes_what_the_authority_says_and_nothing_else() {
    let authority = Authority::ephemeral().unwrap();
    let newcomer = Applicant::new().unwrap();
    let request = newcomer.signing_request().unwrap();
    let info = CertificateSigningRequestParams::from_der(&request.as_slice().into()).unwrap();
    let key = rcgen::PublicKeyData::subject_public_key_info(&info.public_key);
    let certificate = authority.certify(&request, &key, &peer("peer1"), HOUR).unwrap();
    assert_eq!(role_of(&certificate).unwrap(), Some(peer("peer1")));
    let member = newcomer.into_member(certificate.to_vec(), authority.certificate().to_vec()).unwrap();
    trust::member_client(&member, &[]).unwrap();

    // A certificate over somebody else's key is no use to a newcomer, and is noticed.
    assert!(Applicant::new().unwrap().into_member(certificate.to_vec(), authority.certificate().to_vec()).is_err());
}

#[test]
fn who_comes_again_comes_with_the_same_key() {
    let base = tempfile::tempdir().unwrap();
    let file = base.path().join("newcomer.key");
    let authority = Authority::ephemeral().unwrap();
    let key_of = |newcomer: &Applicant| {
        let request = newcomer.signing_request().unwrap();
        let info = CertificateSigningRequestParams::from_der(&request.as_slice().into()).unwrap();
        (rcgen::PublicKeyData::subject_public_key_info(&info.public_key), request)
    };
    let (first, request) = key_of(&Applicant::load_or_create(&file).unwrap());
    assert_eq!(mode(&file), 0o600);
    let certificate = authority.certify(&request, &first, &peer("peer1"), HOUR).unwrap();
    // The answer was lost with the process; the next one takes it up.
    let next = Applicant::load_or_create(&file).unwrap();
    let member = next.into_member(certificate.to_vec(), authority.certificate().to_vec()).unwrap();
    // And so does a member whose certificate is over.
    assert_eq!(key_of(&Applicant::again(&member).unwrap()).0, first);
    fs::write(&file, "nonsense").unwrap();
    assert!(matches!(Applicant::load_or_create(&file), Err(IdentityError::Malformed(_))));
}

#[test]
fn what_a_request_asks_for_besides_its_key_is_ignored() {
    let authority = Authority::ephemeral().unwrap();
    let key = KeyPair::generate().unwrap();
    let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
    let mut greedy = CertificateParams::new(vec!["nameserver.brasa".to_owned(), "admin.brasa".to_owned()]).unwrap();
    greedy.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let request = greedy.serialize_request(&key).unwrap();
    let certificate = authority.certify(request.der(), &spki, &peer("peer1"), HOUR).unwrap();
    assert_eq!(role_of(&certificate).unwrap(), Some(peer("peer1")));

    // A member that signs a certificate for another makes nobody trust it.
    let (begin, _) = validity_of(&certificate).unwrap();
    let issuer = Issuer::from_ca_cert_der(&certificate, key).unwrap();
    let mut forged = CertificateParams::new(vec!["peer2.peer.brasa".to_owned()]).unwrap();
    forged.not_before = time::OffsetDateTime::from_unix_timestamp(begin).unwrap();
    forged.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let forged = forged.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
    let chain = [certificate];
    assert!(judge(authority.certificate(), forged.der(), &chain, "peer2.peer.brasa", begin).is_err());
}

#[test]
fn requests_that_are_damaged_or_over_another_key_are_refused() {
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
    // What is signed, and the signature. Between them stand 15 bytes (algorithm, length) that DER libraries read
    // generously and that say nothing.
    assert_eq!(request[3..5], [0x30, 0x81], "the signed part has a length of one byte");
    let signed = 6 + usize::from(request[5]);
    for at in (0..signed).chain(signed + 15..request.len()) {
        let mut damaged = request.clone();
        damaged[at] ^= 1;
        assert!(authority.certify(&damaged, &spki, &peer("peer1"), HOUR).is_err(), "bit flipped at {at}");
    }
}

#[test]
fn nobody_is_called_an_applicant_by_an_authority() {
    // The name of newcomers lies outside of what a role can be called.
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
    // An authority's certificate names no role, so nobody is taken for a member by it.
    assert!(trust::caller(&[authority.der().clone()]).is_err());
    assert!(trust::caller(&[]).is_err());
    assert!(trust::caller(&[CertificateDer::from(b"nonsense".to_vec())]).is_err());
}

#[test]
fn debug_output_tells_no_secret() {
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
    // No ten characters of the token, and so not its secret either.
    for at in 7..text.len() - 10 {
        assert!(!shown.contains(&text[at..at + 10]));
    }
    // What an unreadable file holds is not repeated either.
    fs::write(&file, pem.replace("-----END PRIVATE KEY-----", "")).unwrap();
    let error = format!("{0} {0:?}", Identity::load(&file).unwrap_err());
    assert!(pem.lines().filter(|line| !line.starts_with('-')).all(|line| !error.contains(line)), "{error}");
}

#[test]
fn certificates_are_looked_at_without_the_key() {
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
fn a_reader_sees_the_old_content_or_the_new_never_a_part() {
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
                assert!(contents.contains(&seen), "a part: {} bytes", seen.len());
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
    assert_eq!(fs::read_dir(base.path()).unwrap().count(), 1, "temporary files were left");
}

#[test]
fn a_write_that_fails_leaves_what_was_there_and_nothing_else() {
    let base = tempfile::tempdir().unwrap();
    // A folder in the way: the last step, the renaming, fails.
    let taken = base.path().join("taken");
    fs::create_dir_all(taken.join("inside")).unwrap();
    assert!(write_private(&taken, b"secret").is_err());
    assert!(taken.join("inside").is_dir());
    assert_eq!(fs::read_dir(base.path()).unwrap().count(), 1, "a secret was left in a temporary file");
    assert!(write_private(&base.path().join("no/such/folder"), b"secret").is_err());
    assert!(write_private(Path::new("/"), b"secret").is_err());
}

#[test]
fn a_readable_file_becomes_private_when_it_is_written_again() {
    let base = tempfile::tempdir().unwrap();
    let file = base.path().join("token");
    fs::write(&file, "old").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    write_private(&file, b"new").unwrap();
    assert_eq!((mode(&file), fs::read(&file).unwrap()), (0o600, b"new".to_vec()));
}
