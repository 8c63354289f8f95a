#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;

fn headers() -> impl Strategy<Value = Headers> {
    prop::collection::btree_map("[a-z-]{1,12}", "[ -~]{0,40}", 0..6).prop_map(|map| map.into_iter().collect())
}

fn id() -> impl Strategy<Value = u32> {
    1..=ID
}

fn frame() -> impl Strategy<Value = Frame> {
    prop_oneof![
        (id(), 0..=ID, 0u8..8, any::<(bool, bool)>(), headers()).prop_map(
            |(id, associated, priority, (fin, unidirectional), headers)| Frame::SynStream {
                id,
                associated,
                priority,
                fin,
                unidirectional,
                headers
            }
        ),
        (id(), any::<bool>(), headers()).prop_map(|(id, fin, headers)| Frame::SynReply { id, fin, headers }),
        (id(), any::<u32>()).prop_map(|(id, status)| Frame::RstStream { id, status }),
        prop::collection::vec((any::<u8>(), 0u32..1 << 24, any::<u32>()), 0..5).prop_map(Frame::Settings),
        any::<u32>().prop_map(Frame::Ping),
        (0..=ID, any::<u32>()).prop_map(|(last, status)| Frame::GoAway { last, status }),
        (id(), any::<bool>(), headers()).prop_map(|(id, fin, headers)| Frame::Headers { id, fin, headers }),
        (0..=ID, 0..=ID).prop_map(|(id, delta)| Frame::WindowUpdate { id, delta }),
        (id(), any::<bool>(), prop::collection::vec(any::<u8>(), 0..300)).prop_map(|(id, fin, data)| Frame::Data {
            id,
            fin,
            data: data.into()
        }),
    ]
}

/// Decodes what comes in pieces; data that was cut is joined again.
fn decode(pieces: &[&[u8]]) -> Result<Vec<Frame>, Error> {
    let (mut decoder, mut buffer, mut frames) = (Decoder::default(), BytesMut::new(), Vec::<Frame>::new());
    let mut continued = false;
    for piece in pieces {
        buffer.extend_from_slice(piece);
        while let Some(frame) = decoder.decode(&mut buffer)? {
            match (continued, frames.last_mut(), &frame) {
                (true, Some(Frame::Data { fin, data, .. }), Frame::Data { fin: end, data: more, .. }) => {
                    *data = [data.as_ref(), more.as_ref()].concat().into();
                    *fin = *end;
                }
                _ => frames.push(frame),
            }
            continued = decoder.rest.is_some();
        }
    }
    Ok(frames)
}

proptest! {
    #[test]
    fn frames_come_back_however_they_are_cut(
        frames in prop::collection::vec(frame(), 1..12), cut in 1usize..64
    ) {
        let (mut encoder, mut wire) = (Encoder::default(), BytesMut::new());
        for frame in &frames {
            encoder.encode(frame, &mut wire).unwrap();
        }
        let pieces: Vec<&[u8]> = wire.chunks(cut).collect();
        prop_assert_eq!(decode(&pieces).unwrap(), frames);
    }

    /// Whatever comes is decoded or refused, and the decoder holds no more than it was given.
    #[test]
    fn nothing_panics(
        frames in prop::collection::vec(frame(), 0..4),
        noise in prop::collection::vec(any::<u8>(), 0..300),
        at in any::<prop::sample::Index>(), flip in any::<u8>(), kind in 0u8..12, length in 0u8..40,
    ) {
        let (mut encoder, mut wire) = (Encoder::default(), BytesMut::new());
        for frame in &frames {
            encoder.encode(frame, &mut wire).unwrap();
        }
        wire.extend_from_slice(&[0x80, 3, 0, kind, 0, 0, 0, length]);
        wire.extend_from_slice(&noise);
        let place = at.index(wire.len());
        wire[place] ^= flip;
        let _ = decode(&[&wire]);
        let _ = decode(&[&noise]);
    }
}

#[test]
fn what_is_against_the_protocol_is_named() {
    let refused = |bytes: &[u8]| decode(&[bytes]).unwrap_err();
    assert_eq!(refused(&[0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]), Error::Version(2));
    assert_eq!(refused(&[0x80, 3, 0, 1, 0, 0xff, 0, 0]), Error::TooLarge(0xff_0000));
    assert_eq!(refused(&[0x80, 3, 0, 6, 0, 0, 0, 3, 0, 0, 0]), Error::Length { kind: 6, length: 3 });
    assert_eq!(refused(&[0x80, 3, 0, 4, 0, 0, 0, 4, 0xff, 0xff, 0xff, 0xff]), Error::Length { kind: 4, length: 4 });
    assert_eq!(refused(&[0, 0, 0, 0, 0, 0, 0, 0]), Error::Stream);
    assert_eq!(refused(&[0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1]), Error::Stream);
    let garbage = [0x80, 3, 0, 2, 0, 0, 0, 8, 0, 0, 0, 1, 1, 2, 3, 4];
    assert!(matches!(refused(&garbage), Error::Compression(_)));
    // A type of the future is passed over.
    let frames = decode(&[&[0x80, 3, 0, 77, 0, 0, 0, 1, 9], &[0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]]);
    assert_eq!(frames.unwrap(), [Frame::Ping(1)]);
}
