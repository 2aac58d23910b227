// Figures for people: three digits, one unit.

const SPACE = "\u00a0"; // keeps a figure and its unit on one line
const UNITS = ["B", "kB", "MB", "GB", "TB"];

/** A number with about three digits. */
export function figure(value) {
  if (!Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const digits = value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return value.toFixed(digits);
}

/** Bytes in the unit that suits them. */
export function bytes(value) {
  let unit = 0;
  while (value >= 1000 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return `${unit === 0 ? value : figure(value)}${SPACE}${UNITS[unit]}`;
}

/** A time: "8.2 ms", "1.30 s", "4:05 min". */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds < 1) return `${figure(seconds * 1000)}${SPACE}ms`;
  if (seconds < 60) return `${figure(seconds)}${SPACE}s`;
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}${SPACE}min`;
}

/** A probability; three digits after the point, so that columns of them line up. */
export const probability = (value) => value.toFixed(3);

/** "1 row", "2 rows". */
export const counted = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
