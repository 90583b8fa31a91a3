//! Bugs that are put in on purpose, without a change of the core: the plan is thinned out, or the view is altered
//! before it is decided upon, or a guard is left out.

use warden_core::event::Rule;
use warden_core::view::View;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// None: Warden as it is.
    Sound,
    WithoutRule(Rule),
    IgnoresPause,
    Unguarded,
    PlainForBarrier,
}

impl Mutation {
    pub fn alters_the_view(self) -> bool {
        false
    }

    pub fn view(self, view: &View) -> View {
        view.clone()
    }
}
