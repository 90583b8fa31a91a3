//! One step of belief: something happened, the view takes it in, and the rules note what they have to remember of it.
//!
//! The view draws no conclusions ([`View::apply`]). Two rules date their own conclusions (since when writes have had
//! nowhere to go, since when HAProxy's file should be another one); that is done here, behind every change of the view.

use crate::event::{Event, Observed};
use crate::rules::{layout, route};
use crate::types::Moment;
use crate::view::View;

/// Takes in something that happened. `now` is when it is taken in, `observed.at` when it was asked for.
pub fn take_in(view: &mut View, observed: Observed, now: Moment) {
    // What we do says nothing new of the world.
    let ours = matches!(observed.event, Event::Started(_));
    let tick = matches!(observed.event, Event::Tick);
    view.apply(observed, now);
    if tick {
        layout::remember(view, now);
    }
    route::remember(view, now, ours);
}
