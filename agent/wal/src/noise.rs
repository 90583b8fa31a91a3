//! Whether bytes are noise: what a good encryption makes of any content.

use crate::page::LONG;

/// The bytes that are counted.
const COUNTED_MAX: u32 = 64 << 10;

/// With fewer bytes nothing is said.
const COUNTED_MIN: u32 = 16 << 10;

/// The limit of the chi-squared statistic of 256 equally frequent values. Noise has 255 +- 23. Records have thousands,
/// also those of compressed or random values.
const CHI_SQUARED_MAX: u64 = 512;

/// How often each byte occurred.
#[derive(Clone, Debug)]
pub(crate) struct Noise {
    counts: [u32; 256],
    counted: u32,
}

impl Noise {
    pub(crate) const fn new() -> Self {
        Self { counts: [0; 256], counted: 0 }
    }

    /// Counts the bytes that are at this offset of the file, without those in the headers of pages.
    pub(crate) fn take(&mut self, at: u64, page_size: u64, bytes: &[u8]) {
        for (byte, at) in bytes.iter().zip(at..) {
            if self.is_full() {
                return;
            }
            if at % page_size < LONG as u64 {
                continue;
            }
            if let Some(count) = self.counts.get_mut(usize::from(*byte)) {
                *count += 1;
                self.counted += 1;
            }
        }
    }

    /// Whether no further byte counts.
    pub(crate) const fn is_full(&self) -> bool {
        self.counted == COUNTED_MAX
    }

    pub(crate) fn is_noise(&self) -> bool {
        let squares: u64 = self.counts.iter().map(|count| u64::from(*count).pow(2)).sum();
        let counted = u64::from(self.counted);
        self.counted >= COUNTED_MIN && (squares * 256 / counted).saturating_sub(counted) < CHI_SQUARED_MAX
    }
}
