//! Text that the agent must never show: passwords, tokens, ZooKeeper credentials.

use serde::{Deserialize, Serialize, Serializer};
use std::fmt;

/// The text in place of a secret.
const MASK: &str = "********";

/// A secret. `Debug` and `Serialize` mask it; only [`Secret::reveal`] returns it.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself, for authentication only.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Compares with `other`. The time does not depend on the position of the first difference.
    pub fn matches(&self, other: &str) -> bool {
        let (a, b) = (self.0.as_bytes(), other.as_bytes());
        let difference = a.iter().zip(b).fold(a.len() ^ b.len(), |acc, (x, y)| acc | usize::from(x ^ y));
        difference == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(MASK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_masked_in_debug_and_in_json() {
        let secret = Secret::new("hunter2");
        assert!(!format!("{secret:?}").contains("hunter2"));
        assert!(!serde_json::to_string(&secret).unwrap().contains("hunter2"));
    }

    #[test]
    fn only_the_same_text_matches() {
        let secret = Secret::new("token");
        assert!(secret.matches("token"));
        for other in ["", "toke", "tokens", "tokeN"] {
            assert!(!secret.matches(other), "{other:?}");
        }
    }
}
