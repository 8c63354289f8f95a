//! Curves, as SVG for documents and as PNG for everything else. The PNG's letters are drawn from a
//! built-in font: a machine that measures often has none.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use font8x8::UnicodeFonts as _;
use tiny_skia::{Color, Paint, PathBuilder, Pixmap, Rect, Stroke, Transform};

pub struct Series {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

pub struct Plot<'a> {
    pub title: &'a str,
    pub x: &'a str,
    pub y: &'a str,
    pub series: Vec<Series>,
}

const WIDTH: f32 = 800.0;
const HEIGHT: f32 = 480.0;
const LEFT: f32 = 80.0;
const RIGHT: f32 = 20.0;
const TOP: f32 = 40.0;
const BOTTOM: f32 = 60.0;
const COLORS: &[(u8, u8, u8)] = &[(31, 119, 180), (214, 92, 39), (44, 140, 70), (148, 80, 160)];

/// One thing to draw; both formats draw the same ones.
enum Shape {
    Line { points: Vec<(f32, f32)>, color: (u8, u8, u8), width: f32 },
    Text { x: f32, y: f32, text: String, anchor: Anchor },
}

#[derive(Clone, Copy, PartialEq)]
enum Anchor {
    Start,
    Middle,
    End,
}

impl Plot<'_> {
    /// Writes NAME.svg and NAME.png into `dir`.
    pub fn save(&self, dir: &Path, name: &str) -> Result<()> {
        let shapes = self.shapes();
        let path = dir.join(format!("{name}.svg"));
        std::fs::write(&path, svg(&shapes)).with_context(|| path.display().to_string())?;
        let path = dir.join(format!("{name}.png"));
        std::fs::write(&path, encode(&draw(&shapes)?)?).with_context(|| path.display().to_string())
    }

    fn shapes(&self) -> Vec<Shape> {
        let points = || self.series.iter().flat_map(|series| &series.points);
        let (x_step, x_end) = ticks(points().map(|point| point.0).fold(0.0, f64::max));
        let (y_step, y_end) = ticks(points().map(|point| point.1).fold(0.0, f64::max));
        let at_x = |x: f64| LEFT + (x / x_end) as f32 * (WIDTH - LEFT - RIGHT);
        let at_y = |y: f64| HEIGHT - BOTTOM - (y / y_end) as f32 * (HEIGHT - TOP - BOTTOM);
        let text = |x, y, text: &str, anchor| Shape::Text { x, y, text: text.to_owned(), anchor };
        let grid = |from, to| Shape::Line { points: vec![from, to], color: (215, 215, 215), width: 1.0 };
        let mut shapes = vec![
            text(WIDTH / 2.0, 22.0, self.title, Anchor::Middle),
            text(WIDTH / 2.0, HEIGHT - 14.0, self.x, Anchor::Middle),
            text(8.0, TOP - 10.0, self.y, Anchor::Start),
        ];
        for index in 0..=(x_end / x_step).round() as usize {
            let value = index as f64 * x_step;
            shapes.push(grid((at_x(value), at_y(0.0)), (at_x(value), at_y(y_end))));
            shapes.push(text(at_x(value), HEIGHT - BOTTOM + 20.0, &label(value), Anchor::Middle));
        }
        for index in 0..=(y_end / y_step).round() as usize {
            let value = index as f64 * y_step;
            shapes.push(grid((at_x(0.0), at_y(value)), (at_x(x_end), at_y(value))));
            shapes.push(text(LEFT - 8.0, at_y(value) + 4.0, &label(value), Anchor::End));
        }
        for (index, (series, color)) in self.series.iter().zip(COLORS.iter().cycle()).enumerate() {
            let points = series.points.iter().map(|(x, y)| (at_x(*x), at_y(*y))).collect();
            shapes.push(Shape::Line { points, color: *color, width: 2.0 });
            let y = HEIGHT - BOTTOM - 16.0 - 18.0 * index as f32;
            let swatch = vec![(WIDTH - RIGHT - 40.0, y - 4.0), (WIDTH - RIGHT - 12.0, y - 4.0)];
            shapes.push(Shape::Line { points: swatch, color: *color, width: 3.0 });
            shapes.push(text(WIDTH - RIGHT - 48.0, y, &series.name, Anchor::End));
        }
        shapes
    }
}

/// A round step and the axis' end for values from zero to `max`.
fn ticks(max: f64) -> (f64, f64) {
    if max <= 0.0 || !max.is_finite() {
        return (1.0, 1.0);
    }
    let power = 10_f64.powf((max / 5.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| max / step <= 6.0);
    let step = step.unwrap_or(max);
    (step, (max / step).ceil() * step)
}

fn label(value: f64) -> String {
    let value = crate::row::round(value);
    if value >= 10_000.0 { format!("{}k", value / 1000.0) } else { format!("{value}") }
}

fn svg(shapes: &[Shape]) -> String {
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    for shape in shapes {
        // Writing to a string cannot fail.
        let _ = match shape {
            Shape::Line { points, color: (r, g, b), width } => {
                let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
                let points = points.join(" ");
                writeln!(
                    out,
                    "<polyline points=\"{points}\" fill=\"none\" stroke=\"rgb({r},{g},{b})\" stroke-width=\"{width}\"/>"
                )
            }
            Shape::Text { x, y, text, anchor } => {
                let anchor = match anchor {
                    Anchor::Start => "start",
                    Anchor::Middle => "middle",
                    Anchor::End => "end",
                };
                let text = text.replace('&', "&amp;").replace('<', "&lt;");
                writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>")
            }
        };
    }
    out + "</svg>\n"
}

fn draw(shapes: &[Shape]) -> Result<Pixmap> {
    let mut pixmap = Pixmap::new(WIDTH as u32, HEIGHT as u32).context("no memory for a picture")?;
    pixmap.fill(Color::WHITE);
    let mut paint = Paint { anti_alias: true, ..Paint::default() };
    for shape in shapes {
        match shape {
            Shape::Line { points, color: (r, g, b), width } => {
                paint.set_color_rgba8(*r, *g, *b, 255);
                let mut path = PathBuilder::new();
                for (index, (x, y)) in points.iter().enumerate() {
                    if index == 0 { path.move_to(*x, *y) } else { path.line_to(*x, *y) }
                }
                if let Some(path) = path.finish() {
                    let stroke = Stroke { width: *width, ..Stroke::default() };
                    pixmap.stroke_path(&path, &paint, &stroke, Transform::identity(), None);
                }
            }
            Shape::Text { x, y, text, anchor } => {
                paint.set_color_rgba8(40, 40, 40, 255);
                let width = 8.0 * text.chars().count() as f32;
                let left = match anchor {
                    Anchor::Start => *x,
                    Anchor::Middle => x - width / 2.0,
                    Anchor::End => x - width,
                };
                letters(&mut pixmap, &paint, left.round(), (y - 8.0).round(), text);
            }
        }
    }
    Ok(pixmap)
}

/// As PNG: eight bits for each of red, green and blue, no filter.
fn encode(picture: &Pixmap) -> Result<Vec<u8>> {
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    let width = picture.width() as usize;
    for row in picture.pixels().chunks(width) {
        zlib.write_all(&[0])?;
        // Opaque, so what is premultiplied is plain.
        let bytes: Vec<u8> = row.iter().flat_map(|pixel| [pixel.red(), pixel.green(), pixel.blue()]).collect();
        zlib.write_all(&bytes)?;
    }
    let mut header = [picture.width().to_be_bytes(), picture.height().to_be_bytes()].concat();
    header.extend([8, 2, 0, 0, 0]);
    let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, data) in [(b"IHDR", header), (b"IDAT", zlib.finish()?), (b"IEND", Vec::new())] {
        let mut sum = flate2::Crc::new();
        sum.update(kind);
        sum.update(&data);
        out.extend(u32::try_from(data.len())?.to_be_bytes());
        out.extend(kind);
        out.extend(&data);
        out.extend(sum.sum().to_be_bytes());
    }
    Ok(out)
}

fn letters(pixmap: &mut Pixmap, paint: &Paint<'_>, left: f32, top: f32, text: &str) {
    for (index, letter) in text.chars().enumerate() {
        let Some(rows) = font8x8::BASIC_FONTS.get(letter).or_else(|| font8x8::LATIN_FONTS.get(letter)) else {
            continue;
        };
        for (row, bits) in rows.iter().enumerate() {
            for column in (0..8).filter(|column| bits & (1 << column) != 0) {
                let (x, y) = (left + (8 * index + column) as f32, top + row as f32);
                if let Some(pixel) = Rect::from_xywh(x, y, 1.0, 1.0) {
                    pixmap.fill_rect(pixel, paint, Transform::identity(), None);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_ends_at_a_round_number_beyond_the_data() {
        for (max, step, end) in
            [(1.0, 0.2, 1.0), (97.0, 20.0, 100.0), (1001.0, 200.0, 1200.0), (0.034, 0.01, 0.04), (0.0, 1.0, 1.0)]
        {
            let (found_step, found_end) = ticks(max);
            assert!(
                (found_step - step).abs() < 1e-9 && (found_end - end).abs() < 1e-9,
                "{max}: {found_step} {found_end}"
            );
        }
    }

    #[test]
    fn both_formats_show_the_curve() -> Result<()> {
        let points = vec![(0.0, 0.0), (10.0, 5.0)];
        let plot = Plot { title: "a < b", x: "s", y: "pods", series: vec![Series { name: "ready".into(), points }] };
        let dir = tempfile::tempdir()?;
        plot.save(dir.path(), "curve")?;
        let svg = std::fs::read_to_string(dir.path().join("curve.svg"))?;
        assert!(svg.contains("a &lt; b") && svg.contains("80.0,420.0 780.0,40.0"), "{svg}");
        let png = std::fs::read(dir.path().join("curve.png"))?;
        assert_eq!(png.get(12..24), Some(&b"IHDR\0\0\x03\x20\0\0\x01\xe0"[..]), "800 times 480");
        assert!(png.ends_with(b"IEND\xae\x42\x60\x82"), "the sum that every PNG ends with");
        let picture = draw(&plot.shapes())?;
        let blue = picture.pixels().iter().filter(|pixel| pixel.blue() > pixel.red().saturating_add(60)).count();
        assert!(blue > 500, "{blue} pixels of the curve");
        Ok(())
    }
}
