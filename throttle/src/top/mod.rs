//! Who has half-open and deferred attempts: once for scripts, or live.
//!
//! [`rows`] is what there is to show, read from the kernel side and named;
//! [`order`] says which of it and in what order; [`columns`] lays it out. [`once`]
//! prints it. [`view`] is the state of the live table and what its keys do,
//! [`screen`] how that looks, and [`live`] shows it on a terminal. Only [`rows`] and
//! [`live`] do any input or output.

pub mod columns;
pub mod live;
pub mod once;
pub mod order;
pub mod rows;
pub mod screen;
pub mod view;
