//! The sandbox in which the tests meet the real kernel.
