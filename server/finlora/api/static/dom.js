// Elements without a template language. Text is always set as text, never as markup.

export const byId = (id) => document.getElementById(id);

/** An element with properties (`class`, `data-*` and `aria-*` too), listeners (`onclick`), children. */
export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name === "class" || name.includes("-")) node.setAttribute(name === "class" ? "class" : name, value);
    else node[name] = value;
  }
  node.append(...children.filter((child) => child !== undefined && child !== null));
  return node;
}

/** Replace what a node holds, only when it is something else: screen readers hear every change. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
