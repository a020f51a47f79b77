//! Whole models against each other.

mod rewritten;
