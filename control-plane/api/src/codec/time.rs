//! Points in time as the API reads and prints them: RFC 3339, in UTC, to the second (`Time`) or the
//! microsecond (`MicroTime`).

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{Offset, TimeZone};

/// Layouts as messages name them.
const SECONDS: &str = "2006-01-02T15:04:05Z07:00";
const MICROS: &str = "2006-01-02T15:04:05.000000Z07:00";

/// Reads a time; `micro` asks for six decimals. `None` is the zero time.
pub(crate) fn parse(text: &str, micro: bool) -> Result<Option<Timestamp>, String> {
    let mut reader = Reader { whole: text, rest: text, layout: if micro { MICROS } else { SECONDS } };
    reader.read(micro)
}

/// The canonical text.
pub(crate) fn print(time: Timestamp, micro: bool) -> String {
    let civil = Offset::UTC.to_datetime(time);
    let mut text = format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}",
        civil.year(),
        civil.month(),
        civil.day(),
        civil.hour(),
        civil.minute(),
        civil.second()
    );
    if micro {
        text.push_str(&format!(".{:06}", civil.subsec_nanosecond() / 1000));
    }
    text.push('Z');
    text
}

struct Reader<'a> {
    whole: &'a str,
    rest: &'a str,
    layout: &'static str,
}

impl Reader<'_> {
    fn wrong(&self, part: &str) -> String {
        format!("parsing time {:?} as {:?}: cannot parse {:?} as {part:?}", self.whole, self.layout, self.rest)
    }

    fn range(&self, part: &str) -> String {
        format!("parsing time {:?}: {part} out of range", self.whole)
    }

    /// So many digits; the message shows the text from where they should begin.
    fn number(&mut self, digits: usize, part: &str) -> Result<i16, String> {
        match self.rest.split_at_checked(digits) {
            Some((number, rest)) if number.bytes().all(|b| b.is_ascii_digit()) => {
                let number = number.parse().map_err(|_| self.wrong(part))?;
                self.rest = rest;
                Ok(number)
            }
            _ => Err(self.wrong(part)),
        }
    }

    fn literal(&mut self, literal: char) -> Result<(), String> {
        match self.rest.strip_prefix(literal) {
            Some(rest) => {
                self.rest = rest;
                Ok(())
            }
            None => Err(self.wrong(literal.encode_utf8(&mut [0; 4]))),
        }
    }

    fn read(&mut self, micro: bool) -> Result<Option<Timestamp>, String> {
        let year = self.number(4, "2006")?;
        self.literal('-')?;
        let month = self.number(2, "01")?;
        if !(1..=12).contains(&month) {
            return Err(self.range("month"));
        }
        self.literal('-')?;
        let day = self.number(2, "02")?;
        self.literal('T')?;
        let hour = self.number(2, "15")?;
        if hour > 23 {
            return Err(self.range("hour"));
        }
        self.literal(':')?;
        let minute = self.number(2, "04")?;
        if minute > 59 {
            return Err(self.range("minute"));
        }
        self.literal(':')?;
        let second = self.number(2, "05")?;
        if second > 59 {
            return Err(self.range("second"));
        }
        let nanos = self.fraction(micro)?;
        let offset = self.offset()?;
        if !self.rest.is_empty() {
            return Err(format!("parsing time {:?}: extra text: {:?}", self.whole, self.rest));
        }
        #[allow(clippy::cast_possible_truncation)]
        let civil = DateTime::new(year, month as i8, day as i8, hour as i8, minute as i8, second as i8, nanos)
            .map_err(|_| self.range("day"))?;
        let offset = Offset::from_seconds(offset).map_err(|_| self.range("time zone offset"))?;
        let time = TimeZone::fixed(offset).to_timestamp(civil).map_err(|_| self.range("day"))?;
        let zero = DateTime::new(1, 1, 1, 0, 0, 0, 0).ok().and_then(|d| Offset::UTC.to_timestamp(d).ok());
        Ok((Some(time) != zero).then_some(time))
    }

    /// Nanoseconds. Without `micro` any number of decimals may stand here, or none.
    fn fraction(&mut self, micro: bool) -> Result<i32, String> {
        let digits = match self.rest.strip_prefix(['.', ',']) {
            Some(rest) => rest.bytes().take_while(u8::is_ascii_digit).count(),
            None => 0,
        };
        // Six decimals and no fewer; a seventh is in the way of what follows.
        let digits = if micro { digits.min(6) } else { digits };
        if micro && digits != 6 {
            return Err(self.wrong(".000000"));
        }
        if digits == 0 {
            return Ok(0);
        }
        let text = self.rest.get(1..=digits.min(9)).unwrap_or_default();
        let nanos = format!("{text:0<9}").parse().map_err(|_| self.range("fractional second"))?;
        self.rest = self.rest.get(digits + 1..).unwrap_or_default();
        Ok(nanos)
    }

    /// Seconds east of UTC.
    fn offset(&mut self) -> Result<i32, String> {
        if let Some(rest) = self.rest.strip_prefix('Z') {
            self.rest = rest;
            return Ok(0);
        }
        let wrong = self.wrong("Z07:00");
        let sign = match self.rest.bytes().next() {
            Some(b'+') => 1,
            Some(b'-') => -1,
            _ => return Err(wrong),
        };
        self.rest = self.rest.get(1..).unwrap_or_default();
        let hours = self.number(2, "").map_err(|_| wrong.clone())?;
        self.literal(':').map_err(|_| wrong.clone())?;
        let minutes = self.number(2, "").map_err(|_| wrong.clone())?;
        if hours > 24 {
            return Err(self.range("time zone offset hour"));
        }
        if minutes > 60 {
            return Err(self.range("time zone offset minute"));
        }
        Ok(sign * (i32::from(hours) * 3600 + i32::from(minutes) * 60))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn again(text: &str, micro: bool) -> String {
        print(parse(text, micro).unwrap().unwrap(), micro)
    }

    #[test]
    fn reads_and_prints() {
        assert_eq!(again("2024-02-29T12:30:00Z", false), "2024-02-29T12:30:00Z");
        assert_eq!(again("2024-02-29T12:30:00.999Z", false), "2024-02-29T12:30:00Z");
        assert_eq!(again("2024-02-29T12:30:00+02:00", false), "2024-02-29T10:30:00Z");
        assert_eq!(again("2024-02-29T12:30:00.000001Z", true), "2024-02-29T12:30:00.000001Z");
        assert_eq!(parse("0001-01-01T00:00:00Z", false), Ok(None));
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, micro, error) in [
            ("", false, "parsing time \"\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"\" as \"2006\""),
            (
                "soon",
                false,
                "parsing time \"soon\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"soon\" as \"2006\"",
            ),
            (
                "2024-01-01",
                false,
                "parsing time \"2024-01-01\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"\" as \"T\"",
            ),
            ("2024-13-01T00:00:00Z", false, "parsing time \"2024-13-01T00:00:00Z\": month out of range"),
            ("2023-02-29T00:00:00Z", false, "parsing time \"2023-02-29T00:00:00Z\": day out of range"),
            ("2024-01-01T00:00:00ZZ", false, "parsing time \"2024-01-01T00:00:00ZZ\": extra text: \"Z\""),
            (
                "2024-01-01T00:00:00",
                false,
                "parsing time \"2024-01-01T00:00:00\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"\" as \"Z07:00\"",
            ),
            (
                "2024-01-01T00:00:00Z",
                true,
                "parsing time \"2024-01-01T00:00:00Z\" as \"2006-01-02T15:04:05.000000Z07:00\": cannot parse \"Z\" as \".000000\"",
            ),
            (
                "2024-01-01T00:00:00.1234567Z",
                true,
                "parsing time \"2024-01-01T00:00:00.1234567Z\" as \"2006-01-02T15:04:05.000000Z07:00\": cannot parse \"7Z\" as \"Z07:00\"",
            ),
        ] {
            assert_eq!(parse(text, micro).unwrap_err(), error);
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,40}", micro in any::<bool>()) {
            let _ = parse(&text, micro);
        }

        #[test]
        fn never_panics_on_what_looks_like_one(
            text in "[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}([.,][0-9]{0,12})?(Z|[+-][0-9]{2}:[0-9]{2})",
            micro in any::<bool>(),
        ) {
            if let Ok(Some(time)) = parse(&text, micro) {
                prop_assert_eq!(parse(&print(time, micro), micro).unwrap().is_some(), true);
            }
        }
    }
}
