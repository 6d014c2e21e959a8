//! Hundreds of downloads from a server that fails at random.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use emberlm_model::hub::{Hub, PullEvent};

use crate::hub_support::{Asked, Fault, SIGNATURE, TOKEN};
use crate::support::{NAME, NEEDED, PART, assert_blobs, assert_files, hub, options, pull, repository, server};

const DOWNLOADS: u64 = 500;

/// Numbers from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % limit
    }
}

/// A fault, or none; `rate` in a hundred requests have one.
fn fault(random: &mut Random, rate: usize, asked: &Asked) -> Fault {
    if random.below(100) >= rate {
        return Fault::None;
    }
    match random.below(20) {
        0..9 => Fault::Cut(random.below(PART + 2000)),
        9 => Fault::Status([500, 502, 503, 408, 425][random.below(5)], vec![]),
        10 => Fault::Status(429, vec![("Retry-After", "0".into())]),
        11 => Fault::Flip(random.below(10 * PART)),
        12 => Fault::Short(1 + random.below(3000)),
        13 => Fault::NoRange,
        14 => Fault::OtherRange,
        15 => Fault::Etag("\"another\""),
        16 => Fault::Status(416, vec![]),
        17 => Fault::Stall(random.below(3000), Duration::from_millis(20)),
        18 if !asked.path.starts_with("/api/") => Fault::Body("text/html", b"<html>Please log in".to_vec()),
        18 => Fault::Garbage,
        _ => Fault::Long,
    }
}

/// Every download ends in the bytes of the hub or in an error, and what is in the cache is right whatever happened.
#[test]
fn five_hundred_downloads_with_random_faults() {
    let (complete, failed, resumed) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
    let kinds = Mutex::new(std::collections::BTreeMap::<String, usize>::new());
    let next = AtomicUsize::new(0);
    let work = || {
        let server = server();
        let mut cache = tempfile::tempdir().unwrap();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed) as u64;
            if seed >= DOWNLOADS {
                return;
            }
            let mut random = Random(seed);
            random.below(1);
            // Half of the failed ones are continued by the next, with other faults.
            if random.below(2) == 0 {
                cache = tempfile::tempdir().unwrap();
            }
            let rate = [5, 15, 30, 60][random.below(4)];
            // In half of them the network is gone for good after so many requests.
            let last = if random.below(2) == 0 { 5 + random.below(30) } else { usize::MAX };
            let (random, count) = (Mutex::new(random), AtomicUsize::new(0));
            server.faults(move |asked| match count.fetch_add(1, Ordering::Relaxed) {
                number if number > last => Fault::Cut(0),
                _ => fault(&mut random.lock().unwrap(), rate, asked),
            });
            let mut options = options(&server, cache.path());
            options.attempts = 3;
            let directory = Hub::new(options).unwrap().pull(&NAME.parse().unwrap(), &|event| {
                if let PullEvent::File { length, kept, .. } = event
                    && kept > 0
                    && kept < length
                {
                    resumed.fetch_add(1, Ordering::Relaxed);
                }
            });
            assert_blobs(cache.path());
            match directory {
                Ok(directory) => {
                    assert_files(&directory, &repository(), &NEEDED);
                    complete.fetch_add(1, Ordering::Relaxed);
                    cache = tempfile::tempdir().unwrap();
                }
                Err(error) => {
                    let text = format!("{error} {error:?}");
                    assert!(!text.contains(TOKEN) && !text.contains(SIGNATURE), "{seed}: {text}");
                    *kinds.lock().unwrap().entry(crate::support::kind(&error)).or_default() += 1;
                    failed.fetch_add(1, Ordering::Relaxed);
                    if seed.is_multiple_of(8) {
                        server.faults(|_| Fault::None);
                        assert_files(&pull(&hub(&server, cache.path()), NAME).unwrap(), &repository(), &NEEDED);
                    }
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(work);
        }
    });
    let (complete, failed, resumed) = (complete.into_inner(), failed.into_inner(), resumed.into_inner());
    println!("{complete} complete, {failed} failed {:?}, {resumed} files continued", kinds.into_inner().unwrap());
    assert_eq!(complete + failed, DOWNLOADS as usize);
    // The faults are neither harmless nor fatal.
    assert!(complete >= 100 && failed >= 50 && resumed >= 20);
}
