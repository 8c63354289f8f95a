//! What a terminal does between a person and a program: lines are edited and echoed, and line ends
//! translated. No I/O. Guests have no terminal of their own to set otherwise.

const INTERRUPT: u8 = 3;
const END: u8 = 4;
const BACKSPACE: u8 = 8;
const KILL_LINE: u8 = 21;
const DELETE: u8 = 127;
/// Longest line; what is more is not taken, as in Linux.
const LINE: usize = 4096;

/// The line being typed.
#[derive(Debug, Default)]
pub struct Terminal {
    line: Vec<u8>,
}

/// What came of some input.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Typed {
    /// For the person to see.
    pub echo: Vec<u8>,
    /// For the program to read.
    pub lines: Vec<u8>,
    /// The program's input has ended: Control-D on an empty line.
    pub end: bool,
    /// Control-C.
    pub interrupt: bool,
}

impl Terminal {
    pub fn input(&mut self, bytes: &[u8]) -> Typed {
        let mut typed = Typed::default();
        for byte in bytes {
            match *byte {
                b'\r' | b'\n' => {
                    typed.echo.extend_from_slice(b"\r\n");
                    typed.lines.append(&mut self.line);
                    typed.lines.push(b'\n');
                }
                BACKSPACE | DELETE => self.erase(&mut typed.echo),
                KILL_LINE => {
                    while !self.line.is_empty() {
                        self.erase(&mut typed.echo);
                    }
                }
                INTERRUPT => {
                    typed.echo.extend_from_slice(b"^C\r\n");
                    typed.interrupt = true;
                    return typed;
                }
                END if self.line.is_empty() => {
                    typed.end = true;
                    return typed;
                }
                END => typed.lines.append(&mut self.line),
                _ if self.line.len() >= LINE => {}
                control if control < b' ' && control != b'\t' => {
                    typed.echo.extend_from_slice(&[b'^', control + 64]);
                    self.line.push(control);
                }
                byte => {
                    typed.echo.push(byte);
                    self.line.push(byte);
                }
            }
        }
        typed
    }

    /// Takes back one character, of however many bytes.
    fn erase(&mut self, echo: &mut Vec<u8>) {
        while let Some(byte) = self.line.pop() {
            if byte & 0xc0 != 0x80 {
                let cells = if byte < b' ' && byte != b'\t' { 2 } else { 1 };
                echo.extend(b"\x08 \x08".repeat(cells));
                return;
            }
        }
    }
}

/// A program's line ends as a terminal shows them.
pub fn output(bytes: &[u8]) -> Vec<u8> {
    let mut shown = Vec::with_capacity(bytes.len() + 8);
    for byte in bytes {
        if *byte == b'\n' {
            shown.push(b'\r');
        }
        shown.push(*byte);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_edited_before_the_program_sees_them() {
        let mut terminal = Terminal::default();
        let typed = terminal.input("ab\u{e9}\x7f\x7fc".as_bytes());
        assert_eq!((typed.lines.as_slice(), typed.end), (&b""[..], false));
        let typed = terminal.input(b"\rx");
        assert_eq!((typed.lines.as_slice(), typed.echo.as_slice()), (&b"ac\n"[..], &b"\r\nx"[..]));
        let typed = terminal.input(b"yz\x15hi\x04");
        assert_eq!(typed.lines, b"hi");
        assert!(terminal.input(b"\x04").end);
        assert!(terminal.input(b"abc\x03").interrupt);
        assert_eq!(output(b"a\nb"), b"a\r\nb");
    }

    #[test]
    fn a_line_without_an_end_stays_within_bounds() {
        let mut terminal = Terminal::default();
        terminal.input(&vec![b'x'; 3 * LINE]);
        assert_eq!(terminal.input(b"\n").lines.len(), LINE + 1);
    }
}
