//! The series of the store: tiers, classes, drives, eviction, checks. Written straight from the engine's status when
//! somebody looks, because which of them there are depends on the configuration.
//!
//! Labels are tiers, reasons, and numbers that the configuration bounds (drives by their place in `nvme.paths`, size
//! classes); never keys or spaces.

use memkv_storage::{DriveState, DriveStatus, EngineStatus};

/// A sample's labels, as in `tier="dram"` or empty, and its value.
type Sample = (String, f64);

/// A series with all its samples.
struct Family {
    name: &'static str,
    help: &'static str,
    samples: fn(&EngineStatus) -> Vec<Sample>,
}

/// All of them; the names of counters end with `_total`.
const FAMILIES: &[Family] = &[
    Family { name: "memkv_tier_pages", help: "Pages in a tier", samples: |s| tiers(s, |t| t.pages) },
    Family {
        name: "memkv_tier_page_bytes",
        help: "Bytes of pages in a tier",
        samples: |s| tiers(s, |t| t.bytes),
    },
    Family {
        name: "memkv_tier_capacity_bytes",
        help: "What a tier may hold",
        samples: |s| tiers(s, |t| t.capacity_bytes),
    },
    Family {
        name: "memkv_tier_hits_total",
        help: "Keys of gets that a tier answered",
        samples: |s| tiers(s, |t| t.hits),
    },
    Family {
        name: "memkv_dram_asked_bytes",
        help: "Bytes that were asked for in the slots in use; memkv_dram_used_bytes less this is waste",
        samples: |s| one(s.asked_bytes),
    },
    Family {
        name: "memkv_class_slots",
        help: "Slots of a size class",
        samples: |s| classes(s, |class| class.slots),
    },
    Family {
        name: "memkv_class_slots_used",
        help: "Slots of a size class in use",
        samples: |s| classes(s, |class| class.in_use),
    },
    Family {
        name: "memkv_chunks_moved_total",
        help: "Chunks that went from one size class to another",
        samples: |s| one(s.counters.chunks_moved),
    },
    Family {
        name: "memkv_eviction_policy_info",
        help: "Which pages go first, always 1",
        samples: |s| vec![(format!("policy=\"{}\"", s.policy), 1.0)],
    },
    Family {
        name: "memkv_evicted_bytes_total",
        help: "Bytes of pages evicted from DRAM",
        samples: |s| one(s.counters.evicted_bytes),
    },
    Family {
        name: "memkv_evicted_inline_pages_total",
        help: "Pages that a put had to evict itself, because the background was too slow",
        samples: |s| one(s.counters.evicted_inline),
    },
    Family {
        name: "memkv_demoted_pages_total",
        help: "Evicted pages that were written to a drive",
        samples: |s| one(s.counters.demoted_pages),
    },
    Family {
        name: "memkv_demoted_bytes_total",
        help: "Bytes of evicted pages that were written to a drive",
        samples: |s| one(s.counters.demoted_bytes),
    },
    Family {
        name: "memkv_demote_dropped_pages_total",
        help: "Evicted pages that were not written: nobody had read them, or the drives could not take them",
        samples: |s| reasons(&[("unread", s.counters.demote_unread), ("drives", s.counters.demote_dropped)]),
    },
    Family {
        name: "memkv_promoted_pages_total",
        help: "Pages read from a drive into DRAM",
        samples: |s| one(s.counters.promoted_pages),
    },
    Family {
        name: "memkv_promoted_bytes_total",
        help: "Bytes of pages read from a drive into DRAM",
        samples: |s| one(s.counters.promoted_bytes),
    },
    Family {
        name: "memkv_promote_failed_pages_total",
        help: "Pages on a drive that became misses: no memory to read into, or the read failed",
        samples: |s| reasons(&[("busy", s.counters.promote_busy), ("error", s.counters.drive_read_errors)]),
    },
    Family {
        name: "memkv_persisted_pages_total",
        help: "Pages written to a drive before their puts were acknowledged",
        samples: |s| one(s.counters.persisted_pages),
    },
    Family {
        name: "memkv_persist_dropped_pages_total",
        help: "Pages acknowledged without being on a drive, because the drives could not take them",
        samples: |s| one(s.counters.persist_dropped),
    },
    Family {
        name: "memkv_removals_failed_total",
        help: "Removals that could not be noted on a drive; such a page may come back after a restart",
        samples: |s| s.nvme.as_ref().map_or_else(Vec::new, |nvme| one(nvme.removals_failed)),
    },
    Family {
        name: "memkv_nvme_backlog_bytes",
        help: "Bytes that wait to be written to drives or are being written",
        samples: |s| s.nvme.as_ref().map_or_else(Vec::new, |nvme| one(nvme.backlog_bytes)),
    },
    Family {
        name: "memkv_nvme_reading_bytes",
        help: "Bytes that are being read from drives",
        samples: |s| s.nvme.as_ref().map_or_else(Vec::new, |nvme| one(nvme.reading_bytes)),
    },
    Family {
        name: "memkv_drive_ok",
        help: "1 while a drive is read and written, 0 when it is full or failed",
        samples: |s| drives(s, |drive| u64::from(drive.state == DriveState::Ok)),
    },
    Family {
        name: "memkv_drive_quota_bytes",
        help: "The most bytes that a drive may hold",
        samples: |s| drives(s, |drive| drive.quota_bytes),
    },
    Family {
        name: "memkv_drive_used_bytes",
        help: "Bytes of the segments on a drive",
        samples: |s| drives(s, |drive| drive.used_bytes),
    },
    Family {
        name: "memkv_drive_live_bytes",
        help: "Bytes of pages on a drive that can still be found",
        samples: |s| drives(s, |drive| drive.live_bytes),
    },
    Family {
        name: "memkv_drive_segments",
        help: "Segments on a drive",
        samples: |s| drives(s, |drive| drive.segments),
    },
    Family {
        name: "memkv_drive_reads_total",
        help: "Pages read from a drive",
        samples: |s| drives(s, |drive| drive.reads),
    },
    Family {
        name: "memkv_drive_read_bytes_total",
        help: "Bytes of pages read from a drive",
        samples: |s| drives(s, |drive| drive.read_bytes),
    },
    Family {
        name: "memkv_drive_writes_total",
        help: "Pages written to a drive",
        samples: |s| drives(s, |drive| drive.writes),
    },
    Family {
        name: "memkv_drive_written_bytes_total",
        help: "Bytes written to a drive, headers included",
        samples: |s| drives(s, |drive| drive.written_bytes),
    },
    Family {
        name: "memkv_drive_errors_total",
        help: "Reads and writes that a drive answered with an error",
        samples: |s| drives(s, |drive| drive.errors),
    },
    Family {
        name: "memkv_drive_dropped_pages_total",
        help: "Pages that a drive did not take",
        samples: dropped,
    },
    Family {
        name: "memkv_drive_reclaimed_segments_total",
        help: "Segments of a drive whose space was reclaimed",
        samples: |s| drives(s, |drive| drive.reclaimed_segments),
    },
    Family {
        name: "memkv_drive_reinserted_pages_total",
        help: "Pages worth writing again when their segment was reclaimed",
        samples: |s| drives(s, |drive| drive.reinserted_pages),
    },
    Family { name: "memkv_pinned_pages", help: "Pages that operators keep", samples: |s| one(s.kept_pages) },
    Family {
        name: "memkv_pinned_bytes",
        help: "Bytes of the slots of pages that operators keep",
        samples: |s| one(s.kept_bytes),
    },
    Family {
        name: "memkv_scrubbed_pages_total",
        help: "Pages checked in the background",
        samples: |s| one(s.scrub.pages),
    },
    Family {
        name: "memkv_scrubbed_bytes_total",
        help: "Bytes checked in the background",
        samples: |s| one(s.scrub.bytes),
    },
    Family {
        name: "memkv_scrub_passes_total",
        help: "Times that everything was checked in the background",
        samples: |s| one(s.scrub.passes),
    },
    Family {
        name: "memkv_quarantined_pages_total",
        help: "Stored pages that did not match their checksum and were taken out",
        samples: |s| one(s.quarantined),
    },
    Family {
        name: "memkv_recovered_pages",
        help: "Pages of an earlier process that the start found",
        samples: |s| {
            let pages = [("dram", s.recovery.dram_pages), ("nvme", s.recovery.nvme_pages)];
            pages.iter().map(|(tier, pages)| (format!("tier=\"{tier}\""), number(*pages))).collect()
        },
    },
    Family {
        name: "memkv_recovery_seconds",
        help: "How long the start took to find the pages of an earlier process",
        samples: |s| vec![(String::new(), s.recovery.seconds)],
    },
    Family {
        name: "memkv_degraded",
        help: "Parts that failed and that the server goes on without, such as drives",
        samples: |s| one(s.degraded.len() as u64),
    },
];

/// Appends all series as Prometheus text.
pub(crate) fn render(status: &EngineStatus, text: &mut String) {
    for family in FAMILIES {
        let samples = (family.samples)(status);
        if samples.is_empty() {
            continue;
        }
        let kind = if family.name.ends_with("_total") { "counter" } else { "gauge" };
        let Family { name, help, .. } = family;
        text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        for (labels, value) in samples {
            let braces = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
            text.push_str(&format!("{name}{braces} {value}\n"));
        }
        text.push('\n');
    }
}

fn one(value: u64) -> Vec<Sample> {
    vec![(String::new(), number(value))]
}

#[allow(clippy::cast_precision_loss, reason = "series are shown as floating point numbers")]
fn number(value: u64) -> f64 {
    value as f64
}

fn reasons(counts: &[(&str, u64)]) -> Vec<Sample> {
    counts.iter().map(|(reason, count)| (format!("reason=\"{reason}\""), number(*count))).collect()
}

fn tiers(status: &EngineStatus, of: fn(&memkv_storage::TierStatus) -> u64) -> Vec<Sample> {
    let sample =
        |tier: &memkv_storage::TierStatus| (format!("tier=\"{}\"", tier.tier.text()), number(of(tier)));
    status.tiers.iter().map(sample).collect()
}

fn classes(status: &EngineStatus, of: fn(&memkv_storage::ClassStatus) -> u64) -> Vec<Sample> {
    let sample = |class: &memkv_storage::ClassStatus| {
        (format!("slot_bytes=\"{}\"", class.slot_bytes), number(of(class)))
    };
    status.classes.iter().map(sample).collect()
}

fn drives(status: &EngineStatus, of: fn(&DriveStatus) -> u64) -> Vec<Sample> {
    let drives = status.nvme.iter().flat_map(|nvme| &nvme.log.drives).enumerate();
    drives.map(|(index, drive)| (format!("drive=\"{index}\""), number(of(drive)))).collect()
}

fn dropped(status: &EngineStatus) -> Vec<Sample> {
    let drives = status.nvme.iter().flat_map(|nvme| &nvme.log.drives).enumerate();
    let of_drive = |(index, drive): (usize, &DriveStatus)| {
        let dropped = drive.dropped;
        let reasons =
            [("full", dropped.full), ("failed", dropped.drive_failed), ("backlog", dropped.backlog)];
        reasons.map(|(reason, pages)| (format!("drive=\"{index}\",reason=\"{reason}\""), number(pages)))
    };
    drives.flat_map(of_drive).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use memkv_storage::{Engine, EngineConfig};

    #[test]
    fn every_series_is_described_once_and_has_a_fitting_name() {
        let engine = Engine::new(EngineConfig::with_dram(64 << 20)).unwrap();
        let mut text = String::new();
        render(&engine.status(), &mut text);
        for family in FAMILIES {
            let name = family.name;
            assert!(name.starts_with("memkv_"), "{name}");
            assert!(FAMILIES.iter().filter(|other| other.name == name).count() == 1, "{name} is there twice");
        }
        assert!(
            text.contains("# TYPE memkv_evicted_bytes_total counter\nmemkv_evicted_bytes_total 0\n"),
            "{text}"
        );
        assert!(text.contains("# TYPE memkv_pinned_pages gauge\nmemkv_pinned_pages 0\n"), "{text}");
        assert!(text.contains("memkv_demote_dropped_pages_total{reason=\"unread\"} 0\n"), "{text}");
        assert!(!text.contains("memkv_class_slots{"), "an empty store has no classes yet");
    }
}
