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
    let sent = batch.openings() * HANDOVER;
    link_count(batch, numbers) * LINK + data + sent + 2 * numbers * VECTOR
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

/// The links of a batch: copies of numbers, calls, what hands descriptors over, closes, the report and
/// putting back.
fn link_count(batch: &Batch<'_>, numbers: usize) -> usize {
    let calls = batch.calls.len() + HANDOVER_LINKS * batch.openings();
    numbers.div_ceil(MOST_VECTORS) + calls + batch.descriptors.len() + 2
}

pub fn encode(layout: &Layout, links: &Links, batch: &Batch<'_>, socket: i32) -> Vec<u8> {
    let numbers = count_numbers(batch);
    let count = link_count(batch, numbers);
    let mut image = Image { base: layout.gate(), bytes: Vec::new() };
    let mut at = layout.gate() + (numbers.div_ceil(MOST_VECTORS) * LINK) as u64;
    let mut data_at = layout.gate() + (count * LINK) as u64;
    // Which place in memory gets the number of which received descriptor.
    let mut copies: Vec<(u64, usize)> = Vec::with_capacity(numbers);
    let mut opened = 0;

    for call in &batch.calls {
        let arguments = place_arguments(call, at, &mut data_at, &mut image, &mut copies);
        image.put(at, &links.call(call.number, &arguments, at + LINK as u64));
        at += LINK as u64;
        if let Some(number) = number_of_opened(call, &arguments) {
            put_handover(layout, links, &mut image, (at, data_at), number, socket, opened);
            at += (HANDOVER_LINKS * LINK) as u64;
            data_at += HANDOVER as u64;
            opened += 1;
        }
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

/// Copy the number, send the descriptor, close it.
const HANDOVER_LINKS: usize = 3;
/// What they point to: two vectors to copy to and two from, struct msghdr, one vector, the control
/// message with the number (struct cmsghdr and padding), the index.
const HANDOVER: usize = 4 * VECTOR + MESSAGE_HEADER + VECTOR + CONTROL_SPACE + INDEX;
const MESSAGE_HEADER: usize = 56;
const CONTROL_SPACE: usize = CONTROL_HEADER + 8;
/// What is sent with a descriptor: which one of the batch it is.
pub const INDEX: usize = 8;

/// Where the number of what a call opens is found.
fn number_of_opened(call: &Call, arguments: &[u64]) -> Option<u64> {
    let offset = call.opens?;
    let data = call.arguments.iter().position(|argument| matches!(argument, Argument::Data(_)))?;
    Some(arguments[data] + offset as u64)
}

/// The links behind a call that opens something. If it failed the number is -1, and so they fail too.
/// Nothing here waits: the process must not, for a reader that is stopped.
fn put_handover(
    layout: &Layout,
    links: &Links,
    image: &mut Image,
    (at, data): (u64, u64),
    number: u64,
    socket: i32,
    index: u64,
) {
    let (send, close) = (at + LINK as u64, at + 2 * LINK as u64);
    let sources = data + 2 * VECTOR as u64;
    let header = sources + 2 * VECTOR as u64;
    let vector = header + MESSAGE_HEADER as u64;
    let control = vector + VECTOR as u64;
    let index_at = control + CONTROL_SPACE as u64;
    image.put_vectors(data, &[(control + CONTROL_HEADER as u64, 4), (close + offset::RDI as u64, 4)]);
    image.put_vectors(sources, &[(number, 4); 2]);
    // No name; one vector; the control message.
    let control_length = (CONTROL_HEADER + 4) as u64;
    for (place, value) in [0, 0, vector, 1, control, control_length, 0].into_iter().enumerate() {
        image.put(header + 8 * place as u64, &u64::to_le_bytes(value));
    }
    image.put_vectors(vector, &[(index_at, INDEX)]);
    image.put(control, &control_length.to_le_bytes());
    image.put(control + 8, &libc::SOL_SOCKET.to_le_bytes());
    image.put(control + 12, &libc::SCM_RIGHTS.to_le_bytes());
    image.put(control + CONTROL_HEADER as u64, &NO_DESCRIPTOR.to_le_bytes());
    image.put(index_at, &index.to_le_bytes());

    let flags = (libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) as u64;
    image.put(at, &copy_link(links, layout, data, sources, 2, send));
    image.put(send, &links.call(libc::SYS_sendmsg, &[socket as u64, header, flags], close));
    image.put(close, &links.call(libc::SYS_close, &[NO_DESCRIPTOR], close + LINK as u64));
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
