//! Amounts of resources: `100m`, `64Mi`, `1e3`. Parsed and printed as the API's `Quantity`.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

/// The shape of a quantity's text, kept over arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `12M`
    DecimalSi,
    /// `12Mi`
    BinarySi,
    /// `12e6`
    DecimalExponent,
}

/// Why a text is no quantity; the messages are the API's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// `mantissa * 10^exponent`, never finer than a billionth.
#[derive(Clone, Debug)]
pub struct Quantity {
    mantissa: i128,
    exponent: i32,
    format: Format,
    /// The text it was parsed from, where the API prints that again.
    text: Option<Box<str>>,
}

const NANO: i32 = -9;
const MAX_BINARY: i128 = i64::MAX as i128;

impl Default for Quantity {
    fn default() -> Self {
        Self::new(0, Format::DecimalSi)
    }
}

/// The parts of a quantity's text.
struct Parts<'a> {
    negative: bool,
    /// Digits before the point without leading zeros; never empty.
    whole: &'a str,
    fraction: &'a str,
    suffix: &'a str,
}

fn split(text: &str) -> Result<Parts<'_>, QuantityError> {
    let negative = text.starts_with('-');
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let stripped = unsigned.trim_start_matches('0');
    if stripped.is_empty() {
        return Ok(Parts { negative, whole: "0", fraction: "", suffix: "" });
    }
    let digits = |s: &str| s.bytes().take_while(u8::is_ascii_digit).count();
    let (whole, rest) = stripped.split_at(digits(stripped));
    let whole = if whole.is_empty() { "0" } else { whole };
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(digits(rest)),
        None => ("", rest),
    };
    let exponent = suffix.trim_start_matches(|c| "eEinumkKMGTP".contains(c));
    let exponent = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
    if exponent.bytes().all(|b| b.is_ascii_digit()) {
        Ok(Parts { negative, whole, fraction, suffix })
    } else {
        Err(QuantityError::Format)
    }
}

/// Base (2 or 10), exponent and format of a suffix.
fn suffix(text: &str) -> Result<(u8, i32, Format), QuantityError> {
    let decimal = |exponent| Ok((10, exponent, Format::DecimalSi));
    let binary = |exponent| Ok((2, exponent, Format::BinarySi));
    match text {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => match text.strip_prefix(['e', 'E']).map(str::parse::<i32>) {
            Some(Ok(exponent)) => Ok((10, exponent, Format::DecimalExponent)),
            _ => Err(QuantityError::Suffix),
        },
    }
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        Self::parse(text)
    }
}

impl Quantity {
    /// A whole number.
    pub fn new(value: i64, format: Format) -> Self {
        Self { mantissa: value.into(), exponent: 0, format, text: None }
    }

    /// Thousandths.
    pub fn from_milli(milli: i64, format: Format) -> Self {
        Self { mantissa: milli.into(), exponent: -3, format, text: None }
    }

    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        if text.is_empty() {
            return Err(QuantityError::Format);
        }
        let parts = split(text)?;
        let (base, exponent, mut format) = suffix(parts.suffix)?;
        let digits: String = [parts.whole, parts.fraction].concat();
        let places = i32::try_from(parts.fraction.len()).map_err(|_| QuantityError::Numeric)?;
        // Trailing zeros go, so that long but simple numbers fit.
        let significant = digits.trim_end_matches('0');
        let zeros = i32::try_from(digits.len() - significant.len()).map_err(|_| QuantityError::Numeric)?;
        let mut mantissa: i128 =
            if significant.is_empty() { 0 } else { significant.parse().map_err(|_| QuantityError::Numeric)? };
        let mut scale = zeros - places;

        // Whether the API takes its short path, on which the text itself may be kept.
        let count = i32::try_from(digits.len()).unwrap_or(i32::MAX);
        let short = match format {
            Format::DecimalSi | Format::DecimalExponent => {
                18_i32.saturating_sub(count) >= 0 && exponent.saturating_sub(places) >= NANO
            }
            #[allow(clippy::cast_possible_truncation)]
            Format::BinarySi => {
                let taken = (exponent as f32 * 3.0 / 10.0) as i32;
                parts.fraction.is_empty() && 15 - i32::try_from(parts.whole.len()).unwrap_or(1000) - taken > 0
            }
        };
        let kept = short
            && match format {
                Format::BinarySi => digits.parse::<i64>().is_ok_and(|value| value & 0x07 != 0),
                _ => (exponent - places) % 3 == 0 && !digits.ends_with("000") && !digits.starts_with('0'),
            };

        if base == 10 {
            scale = scale.checked_add(exponent).ok_or(QuantityError::Numeric)?;
        } else {
            mantissa = mantissa.checked_mul(1 << exponent).ok_or(QuantityError::Numeric)?;
        }
        let mut this = Self { mantissa, exponent: scale, format, text: None };
        if !short {
            this.round_up(NANO);
            if format == Format::BinarySi {
                let limit = Self { mantissa: MAX_BINARY, exponent: 0, format, text: None };
                let one = Self { mantissa: 1, exponent: 0, format, text: None };
                if this.cmp(&limit) == Ordering::Greater {
                    this = limit;
                }
                if this.cmp(&one) == Ordering::Less && !this.is_zero() {
                    format = Format::DecimalSi;
                }
                this.format = format;
            }
        }
        if parts.negative {
            this.mantissa = -this.mantissa;
        }
        if kept || text == "0" {
            this.text = Some(text.into());
        }
        Ok(this)
    }

    pub fn is_zero(&self) -> bool {
        self.mantissa == 0
    }

    /// -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        match self.mantissa.cmp(&0) {
            Ordering::Less => -1,
            Ordering::Equal => 0,
            Ordering::Greater => 1,
        }
    }

    pub fn format(&self) -> Format {
        self.format
    }

    /// Rounds away from zero to a multiple of `10^exponent`; false where that lost something.
    pub fn round_up(&mut self, exponent: i32) -> bool {
        self.text = None;
        if self.exponent >= exponent {
            return true;
        }
        let (mantissa, exact) = rescale(self.mantissa, self.exponent, exponent);
        self.mantissa = mantissa;
        self.exponent = exponent;
        exact
    }

    /// Rounds up to thousandths, as the defaulting of resource lists does.
    pub fn round_up_milli(&mut self) {
        self.round_up(-3);
    }

    /// The amount rounded up to whole units, at most what an i64 holds.
    pub fn value(&self) -> i64 {
        self.scaled(0)
    }

    /// The amount in thousandths, rounded up, at most what an i64 holds.
    pub fn milli(&self) -> i64 {
        self.scaled(-3)
    }

    /// Whether the amount is a whole number.
    pub fn is_whole(&self) -> bool {
        self.exponent >= 0 || rescale(self.mantissa, self.exponent, 0).1
    }

    fn scaled(&self, exponent: i32) -> i64 {
        let value = rescale(self.mantissa, self.exponent, exponent).0;
        i64::try_from(value).unwrap_or(if value < 0 { i64::MIN } else { i64::MAX })
    }

    /// Adds, keeping the own format unless zero.
    #[must_use]
    pub fn add(&self, other: &Self) -> Self {
        let format = if self.is_zero() { other.format } else { self.format };
        let exponent = self.exponent.min(other.exponent);
        let a = rescale(self.mantissa, self.exponent, exponent).0;
        let b = rescale(other.mantissa, other.exponent, exponent).0;
        Self { mantissa: a.saturating_add(b), exponent, format, text: None }
    }

    #[must_use]
    pub fn sub(&self, other: &Self) -> Self {
        let mut negated = other.clone();
        negated.mantissa = -negated.mantissa;
        let mut sum = self.add(&negated);
        sum.format = if self.is_zero() { other.format } else { self.format };
        sum
    }

    /// Number and power of ten, the power a multiple of three.
    fn decimal(&self) -> (i128, i32) {
        let (mut mantissa, mut exponent) = (self.mantissa, self.exponent);
        while mantissa != 0 && mantissa % 10 == 0 {
            mantissa /= 10;
            exponent += 1;
        }
        while exponent.rem_euclid(3) != 0 {
            match mantissa.checked_mul(10) {
                Some(more) => mantissa = more,
                None => break,
            }
            exponent -= 1;
        }
        (mantissa, exponent)
    }
}

/// `mantissa * 10^from` as a multiple of `10^to`, rounded away from zero and saturating; and whether
/// that is exact.
fn rescale(mantissa: i128, from: i32, to: i32) -> (i128, bool) {
    if mantissa == 0 || from == to {
        return (mantissa, true);
    }
    let step = from.abs_diff(to);
    match (10_i128.checked_pow(step), from > to) {
        (Some(factor), true) => match mantissa.checked_mul(factor) {
            Some(value) => (value, true),
            None => (if mantissa < 0 { i128::MIN + 1 } else { i128::MAX }, false),
        },
        (None, true) => (if mantissa < 0 { i128::MIN + 1 } else { i128::MAX }, false),
        (Some(factor), false) => {
            let rest = mantissa % factor;
            (mantissa / factor + rest.signum(), rest == 0)
        }
        (None, false) => (mantissa.signum(), false),
    }
}

impl fmt::Display for Quantity {
    /// The canonical text.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(text) = &self.text {
            return f.write_str(text);
        }
        if self.is_zero() {
            return f.write_str("0");
        }
        if self.format == Format::BinarySi && self.is_whole() {
            let value = rescale(self.mantissa, self.exponent, 0).0;
            if value.unsigned_abs() >= 1024 {
                let (mut value, mut power) = (value, 0_usize);
                while value % 1024 == 0 && power < 6 {
                    value /= 1024;
                    power += 1;
                }
                let suffix = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].get(power).copied().unwrap_or_default();
                return write!(f, "{value}{suffix}");
            }
        }
        let (mantissa, exponent) = self.decimal();
        write!(f, "{mantissa}")?;
        let suffix = match exponent {
            -9 => "n",
            -6 => "u",
            -3 => "m",
            0 => "",
            3 => "k",
            6 => "M",
            9 => "G",
            12 => "T",
            15 => "P",
            18 => "E",
            _ => return write!(f, "e{exponent}"),
        };
        if self.format == Format::DecimalExponent {
            return if exponent == 0 { Ok(()) } else { write!(f, "e{exponent}") };
        }
        f.write_str(suffix)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        match self.sign().cmp(&other.sign()) {
            Ordering::Equal if self.mantissa == 0 => Ordering::Equal,
            Ordering::Equal => {
                let magnitude = magnitude(self).cmp(&magnitude(other)).then_with(|| {
                    // Of equal magnitude: the exponents differ by less than an i128 has digits.
                    let exponent = self.exponent.min(other.exponent);
                    let a = digits(self, exponent);
                    let b = digits(other, exponent);
                    a.cmp(&b)
                });
                if self.mantissa < 0 { magnitude.reverse() } else { magnitude }
            }
            different => different,
        }
    }
}

/// The power of ten of the first digit.
fn magnitude(q: &Quantity) -> i64 {
    i64::from(q.mantissa.unsigned_abs().checked_ilog10().unwrap_or(0)) + i64::from(q.exponent)
}

/// The digits of a quantity down to `10^exponent`.
fn digits(q: &Quantity, exponent: i32) -> String {
    let mut digits = q.mantissa.unsigned_abs().to_string();
    digits.extend(std::iter::repeat_n('0', q.exponent.abs_diff(exponent).min(64) as usize));
    digits
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn text(s: &str) -> String {
        Quantity::parse(s).unwrap().to_string()
    }

    #[test]
    fn prints_as_the_api_does() {
        for (from, to) in [
            ("0", "0"),
            ("0.0", "0"),
            ("00", "0"),
            ("100m", "100m"),
            ("0.1", "100m"),
            ("0.5", "500m"),
            ("1000m", "1"),
            ("1500m", "1500m"),
            ("1.5", "1500m"),
            ("1.500", "1.500"),
            ("64Mi", "64Mi"),
            ("1024Mi", "1Gi"),
            ("1500Mi", "1500Mi"),
            ("0.5Gi", "512Mi"),
            ("1.5Gi", "1536Mi"),
            ("1000Ki", "1000Ki"),
            ("512", "512"),
            ("1000", "1k"),
            ("1024", "1024"),
            ("128974848", "128974848"),
            ("129e6", "129e6"),
            ("129M", "129M"),
            ("1000000", "1M"),
            ("1e3", "1e3"),
            ("10e2", "1e3"),
            ("1E", "1E"),
            ("1E3", "1E3"),
            ("-1", "-1"),
            ("-0.5", "-500m"),
            ("0.0000000001", "1n"),
            ("1.1n", "2n"),
            ("0.1Ki", "102400m"),
            ("9223372036854775807", "9223372036854775807"),
            ("100000000000000000000Ei", "9223372036854775807"),
            ("1.", "1."),
            (".5", "500m"),
            ("1023Ki", "1023Ki"),
            ("8Gi", "8Gi"),
        ] {
            assert_eq!(text(from), to, "{from}");
        }
    }

    #[test]
    fn says_what_is_wrong() {
        for (from, error) in [
            ("", QuantityError::Format),
            ("lots", QuantityError::Format),
            ("1x", QuantityError::Format),
            ("1 ", QuantityError::Format),
            ("1.2.3", QuantityError::Format),
            ("1kk", QuantityError::Suffix),
            ("1mi", QuantityError::Suffix),
            ("1e", QuantityError::Suffix),
            ("1K", QuantityError::Suffix),
            ("1M5", QuantityError::Suffix),
        ] {
            assert_eq!(Quantity::parse(from).unwrap_err(), error, "{from}");
        }
    }

    #[test]
    fn counts() {
        let q = |s: &str| Quantity::parse(s).unwrap();
        assert_eq!(q("100m").value(), 1);
        assert_eq!(q("1.0001").milli(), 1001);
        assert_eq!(q("2Gi").value(), 2 << 30);
        assert_eq!(q("100m").add(&q("0.9")).to_string(), "1");
        assert_eq!(q("1Gi").sub(&q("512Mi")).to_string(), "512Mi");
        assert_eq!(q("0").add(&q("1Mi")).to_string(), "1Mi");
        assert!(q("1Gi") > q("1G"));
        assert!(q("-1") < q("1n"));
        assert_eq!(q("1000m"), q("1"));
        assert!(q("1e300") > q("1e299"));
        let mut rounded = q("1.2345");
        rounded.round_up_milli();
        assert_eq!(rounded.to_string(), "1235m");
    }

    proptest! {
        #[test]
        fn never_panics(s in ".{0,40}") {
            let _ = Quantity::parse(&s).map(|q| (q.to_string(), q.value(), q.milli(), q.add(&q), q.cmp(&q)));
        }

        #[test]
        fn never_panics_on_what_looks_like_one(s in "[+-]?[0-9.]{0,45}[eEinumkKMGTP]{0,2}[-+]?[0-9]{0,4}") {
            let _ = Quantity::parse(&s).map(|q| (q.to_string(), q.value(), q.milli(), q.add(&q).sub(&q), q.cmp(&q)));
        }

        #[test]
        fn canonical_text_reads_back(s in "-?[0-9]{1,17}(\\.[0-9]{1,9})?(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|e3|e-3)?") {
            let q = Quantity::parse(&s).unwrap();
            let again = Quantity::parse(&q.to_string()).unwrap();
            prop_assert_eq!(&again, &q);
            prop_assert_eq!(again.to_string(), q.to_string());
        }

        #[test]
        fn addition_commutes_and_orders(a in 0_i64..1 << 50, b in 1_i64..1 << 50) {
            let (x, y) = (Quantity::from_milli(a, Format::DecimalSi), Quantity::new(b, Format::BinarySi));
            prop_assert_eq!(x.add(&y), y.add(&x));
            prop_assert!(x.add(&y) > x);
            prop_assert_eq!(x.add(&y).sub(&y), x);
        }
    }
}
