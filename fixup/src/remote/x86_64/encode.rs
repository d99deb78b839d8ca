//! A batch as a message: links and what they point to.

use super::super::batch::{Argument, Batch, Call, Descriptor};
use super::chain::{Image, NO_DESCRIPTOR, copy_link, put_back_vectors};
use super::layout::{CONTROL_HEADER, CONTROL_OFFSET, Layout, REPORT, VECTOR};
use super::link::{LINK, Links, offset};

/// The most vectors of one call (UIO_MAXIOV).
const MOST_VECTORS: usize = 1024;

/// The size of a batch's message, in bytes.
pub fn encoded_size(batch: &Batch<'_>) -> usize {
    let numbers = count_numbers(batch);
    let data: usize = batch.calls.iter().flat_map(|call| &call.arguments).map(data_size).sum();
    link_count(batch, numbers) * LINK + data + 2 * numbers * VECTOR
}

fn data_size(argument: &Argument) -> usize {
    match argument {
        Argument::Data(data) => data.bytes.len().next_multiple_of(8),
        _ => 0,
    }
}

fn count_numbers(batch: &Batch<'_>) -> usize {
    let in_calls: usize = batch
        .calls
        .iter()
        .flat_map(|call| &call.arguments)
        .map(|argument| match argument {
            Argument::Number(Descriptor::Received(_)) => 1,
            Argument::Data(data) => data.numbers.len(),
            _ => 0,
        })
        .sum();
    in_calls + batch.descriptors.len()
}

/// The links of a batch: copies of numbers, calls, closes, the report and putting back.
fn link_count(batch: &Batch<'_>, numbers: usize) -> usize {
    numbers.div_ceil(MOST_VECTORS) + batch.calls.len() + batch.descriptors.len() + 2
}

pub fn encode(layout: &Layout, links: &Links, batch: &Batch<'_>, socket: i32) -> Vec<u8> {
    let numbers = count_numbers(batch);
    let count = link_count(batch, numbers);
    let mut image = Image { base: layout.gate(), bytes: Vec::new() };
    let mut at = layout.gate() + (numbers.div_ceil(MOST_VECTORS) * LINK) as u64;
    let mut data_at = layout.gate() + (count * LINK) as u64;
    // Which place in memory gets the number of which received descriptor.
    let mut copies: Vec<(u64, usize)> = Vec::with_capacity(numbers);

    for call in &batch.calls {
        let arguments = place_arguments(call, at, &mut data_at, &mut image, &mut copies);
        image.put(at, &links.call(call.number, &arguments, at + LINK as u64));
        at += LINK as u64;
    }
    for index in 0..batch.descriptors.len() {
        copies.push((at + offset::RDI as u64, index));
        image.put(at, &links.call(libc::SYS_close, &[NO_DESCRIPTOR], at + LINK as u64));
        at += LINK as u64;
    }
    let flags = (libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) as u64;
    let report = [socket as u64, layout.mutable, REPORT as u64, flags, 0, 0];
    image.put(at, &links.call(libc::SYS_sendto, &report, at + LINK as u64));
    at += LINK as u64;
    let vectors = put_back_vectors(layout);
    image.put(at, &copy_link(links, layout, vectors, vectors + VECTOR as u64, 1, layout.receive));

    put_copies(layout, links, &mut image, data_at, &copies);
    image.bytes
}

fn place_arguments(
    call: &Call,
    at: u64,
    data_at: &mut u64,
    image: &mut Image,
    copies: &mut Vec<(u64, usize)>,
) -> Vec<u64> {
    let mut values = Vec::with_capacity(call.arguments.len());
    for (argument, offset) in call.arguments.iter().zip(offset::ARGUMENTS) {
        values.push(match argument {
            Argument::Value(value) => *value,
            Argument::Number(Descriptor::Number(number)) => *number as u64,
            Argument::Number(Descriptor::Received(received)) => {
                copies.push((at + offset as u64, received.0));
                NO_DESCRIPTOR
            }
            Argument::Data(data) => {
                let address = *data_at;
                image.put(address, &data.bytes);
                copies.extend(data.numbers.iter().map(|(at, received)| (address + *at as u64, received.0)));
                *data_at += data_size(argument) as u64;
                address
            }
        });
    }
    values
}

/// The first links of a batch: they copy the numbers of the received descriptors to their places.
fn put_copies(layout: &Layout, links: &Links, image: &mut Image, vectors: u64, copies: &[(u64, usize)]) {
    let numbers = layout.mutable + (CONTROL_OFFSET + CONTROL_HEADER) as u64;
    let (mut at, mut vectors) = (layout.gate(), vectors);
    for part in copies.chunks(MOST_VECTORS) {
        let to: Vec<_> = part.iter().map(|(place, _)| (*place, 4)).collect();
        let from: Vec<_> = part.iter().map(|(_, index)| (numbers + 4 * *index as u64, 4)).collect();
        let sources = vectors + (to.len() * VECTOR) as u64;
        image.put_vectors(vectors, &to);
        image.put_vectors(sources, &from);
        image.put(at, &copy_link(links, layout, vectors, sources, part.len(), at + LINK as u64));
        at += LINK as u64;
        vectors = sources + (from.len() * VECTOR) as u64;
    }
}
