//! What runs on the caller's machine and talks to a Doorward elsewhere: a person's shell, or the step of a task.

pub mod login;
pub mod token;
