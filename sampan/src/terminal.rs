//! What a person sees: tables, and progress where output is a terminal, plain lines where not.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Columns as wide as their longest cell, three spaces apart.
pub fn print_table(header: &[String], rows: impl IntoIterator<Item = Vec<String>>) {
    let rows: Vec<Vec<String>> = rows.into_iter().collect();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).chain(header.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    for row in std::iter::once(header).chain(rows.iter().map(Vec::as_slice)) {
        let line: String = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}   ")).collect();
        println!("{}", line.trim_end());
    }
}

/// On one line, whatever it says: a longer message is cut.
fn bar(total: u64, target: ProgressDrawTarget) -> ProgressBar {
    let (length, template) = match total {
        0 => (None, "{spinner} {wide_msg}"),
        _ => (Some(total), "{spinner} {wide_msg} [{bar:20}] {pos}/{len}"),
    };
    let bar = ProgressBar::with_draw_target(length, target);
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

/// Shows that something goes on: a bar or a spinner on a terminal, lines elsewhere.
pub struct Progress {
    bar: Option<ProgressBar>,
    last: String,
}

impl Progress {
    /// `total` is 0 where nobody knows it.
    pub fn new(total: u64, message: &str) -> Self {
        if !std::io::stderr().is_terminal() {
            eprintln!("{message}");
            return Self { bar: None, last: message.to_owned() };
        }
        let bar = bar(total, ProgressDrawTarget::stderr());
        bar.enable_steady_tick(Duration::from_millis(100));
        bar.set_message(message.to_owned());
        Self { bar: Some(bar), last: message.to_owned() }
    }

    /// Where it is now.
    pub fn update(&mut self, position: u64, message: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(position);
                bar.set_message(message.to_owned());
            }
            None if self.last != message => eprintln!("{message}"),
            None => {}
        }
        message.clone_into(&mut self.last);
    }

    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io;
    use std::sync::{Arc, Mutex};

    use indicatif::TermLike;

    use super::*;

    /// A terminal of 80 columns that remembers its line.
    #[derive(Clone, Debug, Default)]
    struct Terminal(Arc<Mutex<Vec<String>>>);

    impl TermLike for Terminal {
        fn width(&self) -> u16 {
            80
        }
        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }
        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)
        }
        fn write_str(&self, text: &str) -> io::Result<()> {
            self.0.lock().unwrap().push(text.to_owned());
            Ok(())
        }
        fn clear_line(&self) -> io::Result<()> {
            self.0.lock().unwrap().clear();
            Ok(())
        }
        fn flush(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn progress_stays_on_one_line() {
        for total in [0, 12] {
            let terminal = Terminal::default();
            let bar = bar(total, ProgressDrawTarget::term_like(Box::new(terminal.clone())));
            bar.set_message(format!("importing {}", "long/".repeat(40)));
            bar.tick();
            let written = terminal.0.lock().unwrap().concat();
            assert!(written.contains("importing long/"), "{written:?}");
            assert!(written.chars().count() <= 80 && !written.contains('\n'), "{written:?}");
            assert!(total == 0 || written.contains("0/12"), "{written:?}");
        }
    }
}
