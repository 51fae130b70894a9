//! A text as a QR code: on a terminal, and as an image for a page.

use fast_qr::{ECL, QRBuilder, QRCode};

use base64::Engine as _;

/// Light modules around a code on an image, as ISO/IEC 18004 wants them.
const QUIET: usize = 4;
/// The same on a terminal, whose lines are dear; readers do with less.
const QUIET_ON_TERMINAL: usize = 2;
/// Pixels of a module, where there is room.
const SCALE: usize = 6;
/// Bytes of an image, so that its `data:` URL stays within the wire's 16384 characters.
const IMAGE_BYTES: usize = 12_000;

/// The code of `text`, in lines of half blocks; `None` when it is too long for one (more than 2953 bytes).
pub(crate) fn for_terminal(text: &str) -> Option<String> {
    let code = encode(text)?;
    let side = code.size + 2 * QUIET_ON_TERMINAL;
    let is_dark = |x: usize, y: usize| is_dark(&code, x, y, QUIET_ON_TERMINAL);
    let mut out = String::with_capacity(side * side * 2);
    for y in (0..side).step_by(2) {
        for x in 0..side {
            // What is light is drawn: terminals are dark for most, and a reader takes the other way round, too.
            out.push(match (is_dark(x, y), y + 1 >= side || is_dark(x, y + 1)) {
                (true, true) => ' ',
                (true, false) => '▄',
                (false, true) => '▀',
                (false, false) => '█',
            });
        }
        out.push('\n');
    }
    Some(out)
}

/// The code of `text` as the `data:` URL of a PNG image of two colours; `None` when it is too long for one.
pub(crate) fn data_url(text: &str) -> Option<String> {
    let code = encode(text)?;
    let modules = code.size + 2 * QUIET;
    let scale = (1..=SCALE).rev().find(|scale| png_bytes(modules * scale) <= IMAGE_BYTES)?;
    let image = png(modules * scale, |x, y| is_dark(&code, x / scale, y / scale, QUIET));
    Some(format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(image)))
}

fn encode(text: &str) -> Option<Box<QRCode>> {
    // On a screen nothing is torn or dirty: the level with the fewest modules.
    QRBuilder::new(text).ecl(ECL::L).build().ok().map(Box::new)
}

fn is_dark(code: &QRCode, x: usize, y: usize, quiet: usize) -> bool {
    let inside = |at: usize| at.checked_sub(quiet).filter(|at| *at < code.size);
    matches!((inside(x), inside(y)), (Some(x), Some(y)) if code[y][x].value())
}

/// Bytes of one line: what filters it, then a bit a pixel.
const fn line_bytes(side: usize) -> usize {
    1 + side.div_ceil(8)
}

const fn png_bytes(side: usize) -> usize {
    let raw = line_bytes(side) * side;
    8 + (12 + 13) + (12 + 2 + raw + 5 * raw.div_ceil(0xffff) + 4) + 12
}

/// A square PNG image of two colours (RFC 2083), stored and not compressed: a library for that would bring more than the
/// few kilobytes that it saves, of an image that is made when a phone is set up.
fn png(side: usize, is_dark: impl Fn(usize, usize) -> bool) -> Vec<u8> {
    let mut raw = Vec::with_capacity(line_bytes(side) * side);
    for y in 0..side {
        raw.push(0);
        for first in (0..side).step_by(8) {
            let light = |bit: usize| first + bit < side && !is_dark(first + bit, y);
            raw.push((0..8).fold(0, |byte, bit| byte << 1 | u8::from(light(bit))));
        }
    }
    let mut image = b"\x89PNG\r\n\x1a\n".to_vec();
    let side_bytes = u32::try_from(side).unwrap_or(u32::MAX).to_be_bytes();
    // One bit of grey a pixel; the one way of compressing, filtering; not interlaced.
    chunk(&mut image, b"IHDR", &[&side_bytes[..], &side_bytes, &[1, 0, 0, 0, 0]].concat());
    chunk(&mut image, b"IDAT", &stored(&raw));
    chunk(&mut image, b"IEND", &[]);
    image
}

fn chunk(image: &mut Vec<u8>, name: &[u8; 4], body: &[u8]) {
    image.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes());
    let from = image.len();
    image.extend_from_slice(name);
    image.extend_from_slice(body);
    let check = crc32(&image[from..]);
    image.extend_from_slice(&check.to_be_bytes());
}

/// `raw` in the format of zlib (RFC 1950), as blocks that are not compressed (RFC 1951, section 3.2.4).
fn stored(raw: &[u8]) -> Vec<u8> {
    let mut out = vec![0x78, 0x01];
    let blocks = raw.chunks(0xffff);
    let last = blocks.len().saturating_sub(1);
    for (at, block) in blocks.enumerate() {
        let length = u16::try_from(block.len()).unwrap_or(u16::MAX);
        out.push(u8::from(at == last));
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&(!length).to_le_bytes());
        out.extend_from_slice(block);
    }
    out.extend_from_slice(&adler32(raw).to_be_bytes());
    out
}

fn adler32(bytes: &[u8]) -> u32 {
    let step = |(a, b): (u32, u32), byte: &u8| {
        let a = (a + u32::from(*byte)) % 65_521;
        (a, (b + a) % 65_521)
    };
    let (a, b) = bytes.iter().fold((1, 0), step);
    b << 16 | a
}

fn crc32(bytes: &[u8]) -> u32 {
    let bit = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), bit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_the_formats() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b"IEND"), 0xae42_6082);
        assert_eq!(adler32(b"Wikipedia"), 0x11e6_0398);
    }

    #[test]
    fn an_image_fits_the_wire_whatever_the_text() {
        for length in [1, 200, 400, 1000, 2953] {
            let url = data_url(&"x".repeat(length)).unwrap();
            assert!(url.starts_with("data:image/png;base64,") && url.len() <= 16_384, "{length}: {}", url.len());
        }
        assert!(data_url(&"x".repeat(2954)).is_none() && for_terminal(&"x".repeat(2954)).is_none());
    }

    #[test]
    fn an_image_is_as_long_as_was_reckoned_and_shows_its_pixels() {
        let image = png(3, |x, y| x == y);
        assert_eq!(image.len(), png_bytes(3));
        // Behind the head: 8 of signature, 25 of IHDR, 8 of IDAT, 2 of zlib, 5 of the block.
        assert_eq!(&image[48..54], &[0, 0b0110_0000, 0, 0b1010_0000, 0, 0b1100_0000]);
    }

    #[test]
    fn a_terminal_shows_a_finder_in_its_corner() {
        let text = for_terminal("hello").unwrap();
        let lines: Vec<_> = text.lines().collect();
        // 21 modules and the quiet zone, two to a line.
        assert_eq!((lines.len(), lines[0].chars().count()), (13, 25));
        assert!(lines[0].chars().all(|c| c == '█'));
        assert!(lines[1].starts_with("██ ▄▄▄▄▄ █"), "{text}");
    }
}
