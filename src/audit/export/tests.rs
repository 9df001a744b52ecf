//! Tests of exports over trails on disk.
