//! What the targets share: documents are changed value by value, as bytes changed at random make a text that no reader
//! takes, and never come to what is done with a document.

mod mutate;
mod print;

pub use mutate::mutate;
