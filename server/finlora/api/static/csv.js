// CSV as RFC 4180 has it: quotes, quoted line breaks, CRLF or LF, a byte order mark.

/** The records of a text, each a list of fields. Raises Error with the line of an open quote. */
export function parse(text) {
  const records = [];
  let record = [];
  let position = text.charCodeAt(0) === 0xfeff ? 1 : 0;
  while (position < text.length) {
    const [field, next] = text[position] === '"' ? quoted(text, position) : plain(text, position);
    record.push(field);
    position = next;
    if (text[position] === ",") {
      position += 1;
      if (position < text.length) continue;
      record.push("");  // the last field of the last line
    }
    position = afterLineBreak(text, position);
    if (record.length > 1 || record[0] !== "") records.push(record);
    record = [];
  }
  return records;
}

/** Records as a text with CRLF, quoted where that is needed. */
export function format(records) {
  return records.map((record) => `${record.map(quote).join(",")}\r\n`).join("");
}

function plain(text, start) {
  let end = start;
  while (end < text.length && !",\r\n".includes(text[end])) end += 1;
  return [text.slice(start, end), end];
}

function quoted(text, start) {
  let field = "";
  let position = start + 1;
  for (;;) {
    const end = text.indexOf('"', position);
    if (end < 0) throw new Error(`line ${lineOf(text, start)}: a quote is opened and not closed`);
    field += text.slice(position, end);
    if (text[end + 1] !== '"') {
      // What stands between the quote and the comma belongs to the field, as in Python's parser.
      const [rest, next] = plain(text, end + 1);
      return [field + rest, next];
    }
    field += '"';
    position = end + 2;
  }
}

function afterLineBreak(text, position) {
  if (text[position] === "\r") position += 1;
  if (text[position] === "\n") position += 1;
  return position;
}

const lineOf = (text, position) => text.slice(0, position).split(/\r\n|\r|\n/).length;

const quote = (field) => (/[",\r\n]/.test(field) ? `"${field.replaceAll('"', '""')}"` : field);
