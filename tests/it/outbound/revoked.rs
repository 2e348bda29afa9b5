//! Certificates that were good once, or that their authority had no right to sign (T7).

use super::*;
use crate::harness::certificates::Authority;

/// Asks until the provider is known to be well or not, and says who answered.
fn asked(served: &Served) -> String {
    let answer = chat(served);
    assert_eq!(answer.status, 200, "{answer:?}");
    said(&answer)
}

/// Two candidates, of which the first is reached over TLS with these settings.
fn beside(site: &Site, alpha: &Upstream, beta: &Upstream, settings: &str) {
    provider(site, "alpha", &format!("https://{}", alpha.address), settings);
    provider(site, "beta", &format!("http://{}", beta.address), "");
}

#[test]
fn t7_a_certificate_outside_its_authoritys_name_constraints_is_not_believed() {
    let runtime = runtime();
    let constrained = Authority::only_for("constrained", "example.org");
    let own = constrained.issue("provider", &until(2099));
    let alpha = Upstream::new(&runtime, Some(tls(&own, &[], None)), saying("never"));
    let beta = Upstream::new(&runtime, None, saying("beta"));
    let site = site(&["alpha", "beta"]);
    std::fs::write(site.path("ca.pem"), constrained.own.cert_pem()).unwrap();
    beside(&site, &alpha, &beta, "tls = { ca = \"ca.pem\" }");
    let served = start(&site);
    assert_eq!(asked(&served), "beta");
    assert!(alpha.connections() > 0 && alpha.seen().is_empty());
    let told = "the provider's certificate was not believed";
    wait_until(PATIENCE, told, || served.log().contains(told));
    served.stop();
}

#[test]
fn t7_a_revoked_certificate_is_not_believed_nor_one_below_a_revoked_authority_nor_one_on_no_list() {
    let runtime = runtime();
    let root = Authority::new("root");
    let between = root.below("between");
    let (own, other) = (between.issue("provider", &until(2099)), between.issue("other", &until(2099)));
    let alpha = Upstream::new(&runtime, Some(tls_below(&own, &[&between])), saying("alpha"));
    let beta = Upstream::new(&runtime, None, saying("beta"));
    let site = site(&["alpha", "beta"]);
    std::fs::write(site.path("ca.pem"), root.own.cert_pem()).unwrap();
    let lists = |of_root: &[&Issued], of_between: &[&Issued]| root.revoking(of_root) + &between.revoking(of_between);
    std::fs::write(site.path("revoked.pem"), lists(&[], &[&other])).unwrap();
    beside(&site, &alpha, &beta, "tls = { ca = \"ca.pem\", crl = \"revoked.pem\" }");
    let served = start(&site);
    assert_eq!(asked(&served), "alpha", "another one was revoked");
    let cases = [
        (lists(&[], &[&own, &other]), "or one above it, was revoked"),
        (lists(&[&between.own], &[]), "or one above it, was revoked"),
        (between.revoking(&[]), "no revocation list covers the provider's certificate or one above it"),
    ];
    for (list, told) in cases {
        let (before, heard) = (version(&served), alpha.seen().len());
        site.replace("revoked.pem", &list);
        until_version_changes(&served, &before);
        assert_eq!(asked(&served), "beta", "{told}");
        assert_eq!(alpha.seen().len(), heard);
        wait_until(PATIENCE, told, || served.log().contains(told));
        // And well again, so that the next case begins like the first.
        let before = version(&served);
        site.replace("revoked.pem", &lists(&[], &[]));
        until_version_changes(&served, &before);
        wait_until(PATIENCE, "it to be asked again", || asked(&served) == "alpha");
    }
    // A file that is no list leaves all as it is.
    site.replace("revoked.pem", &root.own.cert_pem());
    wait_until(PATIENCE, "the refusal", || served.status().to_string().contains("no revocation list in PEM form"));
    assert_eq!(asked(&served), "alpha");
    served.stop();
}
