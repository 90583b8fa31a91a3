//! Patroni's hooks: `pre_promote` and `before_stop`.

pub mod before_stop;
pub mod gate;
