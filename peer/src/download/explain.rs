//! Explains the speed of a download: the profile measured here and the upload reports of its sources, combined by
//! [`crate::diagnostics::bottleneck`].

use crate::download::params;
use std::{cmp::Reverse, time::Duration};

use futures::future::join_all;
use protocol::swarm::params::MAX_ACTIVE_PROVIDERS;
use shared::{
    contact::Contact,
    content::ContentHash,
    id::PeerId,
    net::{Connections, Target},
    rpc::peer::{PeerServiceClient, UploadReport},
};

use super::{context::DownloadContext, profile::DownloadProfile};
use crate::{
    api::{Explained, ExplainedSource, RunningDownload},
    diagnostics::bottleneck::{Measured, Source, findings},
};

/// Inputs of an explanation besides the profile of the download.
pub(crate) struct Explainer<'a> {
    /// Connections for calls.
    pub(crate) connections: &'a Connections,
    /// Rate limit of the bytes that this peer receives, bytes a second.
    pub(crate) limit_down: Option<u64>,
    /// Receive buffer of the socket in bytes, if the system granted less than requested.
    pub(crate) clamped_buffer: Option<u64>,
}

impl Explainer<'_> {
    /// Explains a download that has ended.
    pub(crate) async fn explain(&self, context: &DownloadContext) -> Explained {
        let measured = self.complete(&context.profile, context.profile.measured()).await;
        let source = |(peer, source): (&PeerId, &Source)| ExplainedSource {
            peer: peer.clone(),
            bytes: source.bytes,
            bytes_per_second: per_second(source.bytes, source.time.streaming),
            rtt: source.report.as_ref().map(|report| report.path.rtt).filter(|rtt| !rtt.is_zero()).or(source.rtt),
        };
        let sent = measured.sources.iter().filter(|(_, source)| source.bytes > 0);
        Explained {
            name: context.pattern.clone(),
            bytes: context.profile.bytes(),
            seconds: measured.elapsed.as_secs_f64(),
            sources: sent.map(source).collect(),
            findings: findings(&measured),
        }
    }

    /// Describes a running download and explains its rate over the last seconds. The reports of the sources cover the
    /// whole download.
    pub(crate) async fn describe(&self, context: &DownloadContext) -> RunningDownload {
        let measured = self.complete(&context.profile, context.profile.measured_recently()).await;
        RunningDownload {
            name: context.pattern.clone(),
            bytes_done: context.bytes_done(),
            bytes_total: context.bytes_total,
            bytes_per_second: context.profile.bytes_per_second(),
            sources: context.sources(),
            findings: findings(&measured),
        }
    }

    /// Adds the settings of this peer and the reports of the sources. A source that does not answer within
    /// [`params::REPORT_DEADLINE`] has none.
    async fn complete(&self, profile: &DownloadProfile, mut measured: Measured) -> Measured {
        measured.limit_down = self.limit_down;
        measured.clamped_buffer = self.clamped_buffer;
        let mut contacts = profile.requested_sources();
        // Only those that streamed longest: a swarm may have hundreds.
        contacts
            .sort_by_key(|contact| Reverse(measured.sources.get(&contact.peer).map(|source| source.time.streaming)));
        contacts.truncate(MAX_ACTIVE_PROVIDERS);
        let reports = join_all(contacts.iter().map(|contact| self.report_of(contact, profile.hashes()))).await;
        for (contact, report) in contacts.iter().zip(reports) {
            if let Some(source) = measured.sources.get_mut(&contact.peer) {
                source.report = report;
            }
        }
        measured
    }

    /// Returns the sum of the upload reports of a source for `hashes`. Limit, slots, machine and current path state are
    /// those of the first report.
    async fn report_of(&self, contact: &Contact, hashes: &[ContentHash]) -> Option<UploadReport> {
        let target = Target::from(contact);
        let ask = |hash: ContentHash| {
            let call = move |peer: PeerServiceClient, cx| async move { peer.upload_report(cx, hash).await };
            self.connections.call(&target, params::REPORT_DEADLINE, call)
        };
        let answers = join_all(hashes.iter().map(|hash| ask(*hash))).await;
        let reports = answers.into_iter().filter_map(|answer| match answer {
            Ok(report) => report,
            Err(error) => {
                tracing::debug!(%error, peer = %contact.peer, "cannot get the upload report of a source");
                None
            }
        });
        reports.reduce(|mut sum, report| {
            sum.uploads += report.uploads;
            sum.bytes += report.bytes;
            sum.served += report.served;
            sum.network_wait += report.network_wait;
            sum.throttle_wait += report.throttle_wait;
            sum.slot_wait += report.slot_wait;
            sum.path.sent_packets += report.path.sent_packets;
            sum.path.lost_packets += report.path.lost_packets;
            sum.path.congestion_events += report.path.congestion_events;
            sum
        })
    }
}

fn per_second(bytes: u64, time: Duration) -> u64 {
    let seconds = time.as_secs_f64();
    if seconds > 0.0 { (bytes as f64 / seconds) as u64 } else { 0 }
}
