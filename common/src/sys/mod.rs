//! The system layer: one small safe function per system call that nix and rustix do not wrap,
//! named after the call. This folder is the only one in the project that may contain `unsafe`;
//! each block says what makes it sound.
#![allow(unsafe_code)]

pub mod autofs;
pub mod inherited;
pub mod mmap;
pub mod mount;
pub mod namespace;
pub mod process;
pub mod ptrace;
pub mod yaml;
