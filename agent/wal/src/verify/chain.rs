//! Each segment together with the segment before it.

use super::{Cluster, Content, File};
use crate::{FileName, Finding, History, Lsn, SegmentName, SegmentSize, Verdict};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::vec::Vec;

/// The segments in a row.
pub(super) struct Chain<'a> {
    pub files: &'a [File],
    pub size: SegmentSize,
    pub histories: &'a BTreeMap<u32, History>,
}

impl Chain<'_> {
    /// Each segment's finding together with the segment before. Those of another cluster are foreign.
    pub(super) fn findings(&self, cluster: Option<Cluster>) -> Vec<Option<Finding>> {
        let mut findings: Vec<Option<Finding>> = Vec::new();
        let mut order: BTreeMap<(Lsn, u32), Vec<usize>> = BTreeMap::new();
        for (nth, file) in self.files.iter().enumerate() {
            let finding = if let Content::Segment(finding) = &file.content { Some(finding.clone()) } else { None };
            let finding = finding.map(|finding| own(finding, cluster));
            if let (FileName::Segment(name) | FileName::Partial(name), Some(finding)) = (&file.name, &finding)
                && finding.verdict != Verdict::Foreign
                && let Some(start) = name.start(self.size)
            {
                order.entry((start, name.timeline)).or_default().push(nth);
            }
            findings.push(finding);
        }
        for ((start, timeline), copies) in &order {
            let name = SegmentName::at(*timeline, *start, self.size);
            for nth in copies {
                let Some(alone) = findings.get(*nth).cloned().flatten() else { continue };
                let before = self.before(name, *start, &alone, &order);
                let carries = before.iter().filter_map(|nth| {
                    let is_segment = self.files.get(*nth).is_some_and(|file| matches!(file.name, FileName::Segment(_)));
                    findings.get(*nth)?.as_ref()?.carry.as_ref().filter(|_| is_segment)
                });
                // Of copies that differ one may be the right one.
                let joined = carries.map(|carry| alone.clone().after(name, carry));
                let best = joined.max_by_key(|finding| (finding.verdict != Verdict::Corrupt, finding.end));
                if let (Some(best), Some(place)) = (best, findings.get_mut(*nth)) {
                    *place = Some(best);
                }
            }
        }
        findings
    }

    /// The copies of the segment before: that of the same timeline, else that of the timeline that it forked from.
    fn before(
        &self,
        name: SegmentName,
        start: Lsn,
        finding: &Finding,
        order: &BTreeMap<(Lsn, u32), Vec<usize>>,
    ) -> Vec<usize> {
        let Some(before) = start.0.checked_sub(self.size.bytes()).map(Lsn) else { return Vec::new() };
        let history = self.histories.get(&name.timeline).map(|history| history.timeline_at(Lsn(start.0 - 1)));
        let header = finding.head.as_ref().map(|head| head.timeline);
        let timelines = [Some(name.timeline), history, header];
        let found = timelines.into_iter().flatten().find_map(|timeline| order.get(&(before, timeline)));
        found.cloned().unwrap_or_default()
    }
}

/// The finding, as a segment of this cluster.
fn own(mut finding: Finding, cluster: Option<Cluster>) -> Finding {
    let Some(cluster) = cluster else { return finding };
    let reason = match (finding.system, finding.size) {
        (Some(system), _) if system != cluster.system => {
            format!("the system identifier is {system}, and that of most segments is {}", cluster.system)
        }
        (Some(_), Some(size)) if size != cluster.size => {
            let (is, expected) = (size.bytes(), cluster.size.bytes());
            format!("its cluster's segments had {is} bytes, and those of most segments have {expected}")
        }
        _ => return finding,
    };
    (finding.verdict, finding.reason, finding.carry, finding.head) = (Verdict::Foreign, reason, None, None);
    finding
}
