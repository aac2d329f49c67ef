'use strict';
/* Shows the records of the page's data block, and makes its tables sort and filter. Texts of records reach the
   page as text nodes only. */
(() => {
  const data = JSON.parse(document.getElementById('data').textContent);
  const PAGE = 200;      // rows of the table of records that are added at a time
  const MOST = 200;      // records that one dialog shows
  const SVG = 'http://www.w3.org/2000/svg';

  // ---- small tools ----------------------------------------------------------------------------------

  function make(name, attributes, ...children) {
    const svg = ['svg', 'path', 'line', 'circle', 'text', 'title'].includes(name);
    const node = svg ? document.createElementNS(SVG, name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
    for (const child of children) if (child !== null && child !== '') node.append(child);
    return node;
  }

  /* A label as a person types it may break behind each of its parts. */
  function breakable(label) {
    return label.split(/(?<=[/:+])/).flatMap((part, i) => (i ? [document.createElement('wbr'), part] : [part]));
  }

  const number = (value) => (typeof value !== 'number' ? '' : value >= 99.995 ? value.toFixed(1) : value.toFixed(2));
  const median = (values) => {
    const sorted = [...values].sort((a, b) => a - b);
    return (sorted[(sorted.length - 1) >> 1] + sorted[sorted.length >> 1]) / 2;
  };
  const short = (value) => String(Number(value.toPrecision(3)));

  /* Undecided first: what has no value stands last in either direction. */
  function compare(a, b, direction) {
    const none = (value) => value === null || value === '';
    if (none(a) || none(b)) return none(a) - none(b);
    if (typeof a === 'number' && typeof b === 'number') return direction * (a - b);
    return direction * String(a).localeCompare(String(b), 'en', { numeric: true });
  }

  /* A header's button goes through ascending, descending and the order of the page. */
  function sortButton(header, changed) {
    const button = make('button', { type: 'button', class: 'sort' });
    button.append(...header.childNodes);
    header.append(button);
    header.setAttribute('aria-sort', 'none');
    button.addEventListener('click', () => {
      const next = { none: 'ascending', ascending: 'descending', descending: 'none' };
      const now = next[header.getAttribute('aria-sort')];
      for (const other of header.closest('thead').querySelectorAll('th')) {
        if (other.hasAttribute('aria-sort')) other.setAttribute('aria-sort', 'none');
      }
      header.setAttribute('aria-sort', now);
      changed({ ascending: 1, descending: -1, none: 0 }[now]);
    });
  }

  // ---- the grids, which are in the page already ------------------------------------------------------

  function cellValue(cell) {
    if (!cell) return null;
    if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
    const text = cell.textContent.trim();
    return /^-?\d+(\.\d+)?( %)?$/.test(text) ? parseFloat(text) : text;
  }

  /* The header of each column: under one that spans several, those of the second row. */
  function columnHeaders(head) {
    const under = head.rows[1] ? [...head.rows[1].cells] : [];
    return [...head.rows[0].cells].flatMap((cell) => (cell.colSpan > 1 ? under.splice(0, cell.colSpan) : [cell]));
  }

  const gridRows = [];
  for (const table of document.querySelectorAll('section.grid table')) {
    const body = table.tBodies[0];
    const rows = [...body.rows];
    columnHeaders(table.tHead).forEach((header, i) => {
      sortButton(header, (direction) => {
        const keyed = rows.map((row) => [cellValue(row.cells[i]), row]);
        if (direction) keyed.sort((a, b) => compare(a[0], b[0], direction));
        body.append(...keyed.map((pair) => pair[1]));
        table.classList.toggle('sorted', direction !== 0);
      });
    });
    for (const row of rows) {
      const label = row.cells[0];
      label.replaceChildren(...breakable(label.textContent));
    }
    for (const row of rows) gridRows.push([row.textContent.toLowerCase() + ' ' + (row.dataset.row || '').toLowerCase(), row]);
  }

  // ---- the table of records, built from the data -----------------------------------------------------

  const kinds = data.summary.map((column) => column[1]);
  const value = (row, i) => (kinds[i] === 'text' ? data.pool[row[i]] : row[i]);
  const searched = data.records.map((row) => row.map((_, i) => value(row, i)).join(' ').toLowerCase());
  let order = data.records.map((_, i) => i);
  let fitting = order;
  let shown = PAGE;
  const body = make('tbody');
  const more = make('button', { type: 'button', class: 'more' });
  more.addEventListener('click', () => { shown += PAGE; drawRecords(); });

  function drawRecords() {
    const rows = fitting.slice(0, shown).map((index) => {
      const row = data.records[index];
      const cells = row.map((_, i) => {
        const text = kinds[i] === 'number' && i > 1 ? number(row[i]) : String(value(row, i));
        if (i === 0) return make('th', { scope: 'row' }, make('a', { href: '#r=' + index }, ...breakable(text)));
        return make('td', kinds[i] === 'number' ? { class: 'number' } : {}, text);
      });
      return make('tr', {}, ...cells);
    });
    body.replaceChildren(...rows);
    more.hidden = fitting.length <= shown;
    more.textContent = `Show ${Math.min(PAGE, fitting.length - shown)} more of ${fitting.length}`;
  }

  function recordsTable() {
    const headers = data.summary.map(([title]) => make('th', { scope: 'col' }, title));
    const table = make('table', {}, make('thead', {}, make('tr', {}, ...headers)), body);
    headers.forEach((header, i) => sortButton(header, (direction) => {
      order = data.records.map((_, j) => j);
      if (direction) order.sort((a, b) => compare(value(data.records[a], i), value(data.records[b], i), direction) || a - b);
      filter();
    }));
    const region = make('div', { class: 'scroll', tabindex: '0', role: 'group', 'aria-labelledby': 'records-title' }, table);
    document.getElementById('all-records').append(region, more);
  }

  // ---- filter ----------------------------------------------------------------------------------------

  const box = document.getElementById('filter');
  function filter() {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (text) => words.every((word) => text.includes(word));
    let rows = 0;
    for (const [text, row] of gridRows) {
      row.hidden = !fits(text);
      rows += !row.hidden;
    }
    fitting = order.filter((index) => fits(searched[index]));
    shown = PAGE;
    drawRecords();
    document.getElementById('filtered').textContent = words.length
      ? `${rows} of ${gridRows.length} table rows, ${fitting.length} of ${order.length} records` : '';
  }
  let waiting = 0;
  box.addEventListener('input', () => {
    clearTimeout(waiting);
    waiting = setTimeout(filter, data.records.length > 2000 ? 150 : 0);
  });

  // ---- small plots -----------------------------------------------------------------------------------

  const WIDTH = 320, HEIGHT = 84, TOP = 6, BOTTOM = 66;

  /* Values as a line, or the least and largest of each stretch as a band; marks are [name, share of width]. */
  function plot(title, unit, low, high, marks, foot) {
    const top = high.length ? high : low;
    const largest = Math.max(...top), least = Math.min(...low);
    const from = least > 0 && least > largest / 2 ? least - (largest - least || least / 10) * 0.15 : Math.min(0, least);
    const to = largest > from ? largest : from + 1;
    const x = (i) => (low.length === 1 ? WIDTH / 2 : (i * WIDTH) / (low.length - 1)).toFixed(1);
    const y = (v) => (BOTTOM - ((v - from) / (to - from)) * (BOTTOM - TOP)).toFixed(1);
    const line = (values) => values.map((v, i) => `${x(i)} ${y(v)}`).join('L');
    const shape = high.length
      ? make('path', { class: 'band', d: `M${line(high)}L${low.map((v, i) => `${x(i)} ${y(v)}`).reverse().join('L')}Z` })
      : make('path', { class: 'line', d: `M${line(low)}` });
    const said = `${title}: ${short(least)} to ${short(largest)} ${unit}, median about ${short(median([...low, ...high]))} ${unit}`;
    const lines = (marks || []).flatMap(([name, at], i) => {
      const end = at > 0.7;
      const place = (WIDTH * at).toFixed(1);
      return [
        make('line', { class: 'phase', x1: place, x2: place, y1: 0, y2: BOTTOM }),
        make('text', { x: place, y: HEIGHT - 8 + (i % 2 ? 6 : -3), 'text-anchor': end ? 'end' : 'start' }, name),
      ];
    });
    return make('figure', { class: 'plot' },
      make('figcaption', {}, `${said}.${foot ? ' ' + foot : ''}`),
      make('svg', { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'img', 'aria-label': said },
        make('line', { class: 'axis', x1: 0, x2: WIDTH, y1: BOTTOM, y2: BOTTOM }), shape, ...lines));
  }

  function samplePlots(decode, prefill) {
    const plots = [];
    for (const [series, title, what] of [[decode, 'Time per decoded token', 'tokens'], [prefill, 'Time per prompt batch', 'batches']]) {
      if (!series) continue;
      const [count, low, high] = series;
      const thinned = high.length ? `: least and largest of ${low.length} stretches` : '';
      plots.push(plot(title, 'ms', low, high, [], `${count} ${what}${thinned}.`));
    }
    return plots;
  }

  function telemetryPlots(timeline) {
    if (!timeline) return [];
    const [looks, seconds, phases, series] = timeline;
    const marks = phases.filter(([, at]) => seconds > 0 && at >= 0 && at <= seconds).map(([name, at]) => [name, at / seconds]);
    return series.map(([name, unit, low, high]) => plot(name, unit, low, high, marks, `${looks} looks in ${short(seconds)} s.`));
  }

  // ---- one record ------------------------------------------------------------------------------------

  function group(title, names, values) {
    const pairs = names.flatMap((name, i) => (values[i] ? [make('dt', {}, name), make('dd', {}, values[i])] : []));
    return pairs.length ? make('section', {}, make('h3', {}, title), make('dl', { class: 'pairs' }, ...pairs)) : null;
  }

  function settings(title, rows) {
    const head = make('tr', {}, ...['', 'requested', 'effective'].map((text) => (
      text ? make('th', { scope: 'col' }, text) : make('td', {}))));
    const lines = rows.map(([name, asked, real]) => make('tr', {},
      make('th', { scope: 'row' }, name), make('td', {}, asked), make('td', {}, real || '—')));
    return make('section', {}, make('h3', {}, title), make('table', { class: 'settings' },
      make('thead', {}, head), make('tbody', {}, ...lines)));
  }

  function plots(title, figures) {
    return figures.length ? make('section', { class: 'wide' }, make('h3', {}, title), make('div', { class: 'plots' }, ...figures)) : null;
  }

  function recordBody(index) {
    const detail = data.details[index];
    if (!detail) {
      return [make('p', { class: 'quiet' }, 'The details of this run are not in this file, which keeps it small. '
        + 'They are in records.jsonl of its campaign.')];
    }
    const [numbers, decode, prefill, timeline] = detail;
    const sections = data.groups.map(([title, names], i) => {
      if (!numbers[i]) return null;
      const values = data.pool[numbers[i]];
      return names.length ? group(title, names, values) : settings(title, values);
    });
    sections.splice(2, 0, plots('Samples', samplePlots(decode, prefill)), plots('Telemetry', telemetryPlots(timeline)));
    return sections;
  }

  function recordEntry(index, open) {
    const row = data.records[index];
    const speed = typeof row[5] === 'number' ? `${number(row[5])} tokens/s` : typeof row[6] === 'number' ? `${number(row[6])} prompt tokens/s` : 'no speed';
    const state = [`replicate ${row[1]}`, speed, value(row, 4), value(row, 9)].filter(Boolean).join(' · ');
    const inside = make('div', { class: 'record' });
    const entry = make('details', {}, make('summary', {}, make('b', {}, value(row, 0)), ' ', make('span', {}, state)), inside);
    const fill = () => {
      if (entry.open && !inside.hasChildNodes()) inside.append(...recordBody(index).filter(Boolean));
    };
    entry.addEventListener('toggle', fill);
    entry.open = open;
    fill();
    return entry;
  }

  // ---- the dialog: #r=3-5,9 shows these records ------------------------------------------------------

  const dialog = document.getElementById('dialog');
  function asked(hash) {
    const match = /^#r=([0-9,-]{1,8000})$/.exec(hash);
    if (!match) return [];
    const found = [];
    for (const part of match[1].split(',')) {
      const [from, to] = part.split('-').map(Number);
      for (let i = from; i <= (to || from) && found.length < MOST; i += 1) if (data.records[i]) found.push(i);
    }
    return found;
  }

  function route() {
    const found = asked(location.hash);
    if (!found.length) {
      if (dialog.open) dialog.close();
      return;
    }
    const title = document.getElementById('dialog-title');
    title.textContent = found.length === 1 ? 'One record' : `${found.length} records`;
    const entries = found.map((index, i) => recordEntry(index, i === 0));
    document.getElementById('dialog-body').replaceChildren(...entries);
    if (!dialog.open) dialog.showModal();
    title.focus();
    document.getElementById('dialog-body').scrollTop = 0;
  }
  document.getElementById('close').addEventListener('click', () => dialog.close());
  dialog.addEventListener('click', (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener('close', () => {
    if (location.hash.startsWith('#r=')) history.replaceState(null, '', '#');
  });
  window.addEventListener('hashchange', route);

  // ---- paper has nothing to click --------------------------------------------------------------------

  let opened = [];
  window.addEventListener('beforeprint', () => {
    opened = [...document.querySelectorAll('main details:not([open]):not(.proof)')];
    for (const part of opened) part.open = true;
  });
  window.addEventListener('afterprint', () => { for (const part of opened) part.open = false; });

  recordsTable();
  filter();
  route();
})();
