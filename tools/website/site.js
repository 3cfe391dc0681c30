// Theme, menu, search, tables that sort, code to copy and unfold. A page reads well without any of it. On Quarto's pages only the tables are ours.
'use strict';
(() => {
  const root = document.documentElement, own = 'root' in root.dataset, up = root.dataset.root || '';
  const kept = {
    get() { try { return localStorage.getItem('mammo-theme'); } catch { return null; } },
    set(v) { try { localStorage.setItem('mammo-theme', v); } catch { /* a browser that keeps nothing */ } },
  };
  if (own && ['light', 'dark'].includes(kept.get())) root.dataset.theme = kept.get();
  const make = (tag, attrs = {}, ...inside) => { const e = document.createElement(tag); for (const [k, v] of Object.entries(attrs)) e.setAttribute(k, v); e.append(...inside); return e; };
  const all = (what, from = document) => [...from.querySelectorAll(what)];

  function theme() {
    const button = document.querySelector('.theme'), system = matchMedia('(prefers-color-scheme: dark)');
    const dark = () => (root.dataset.theme || (system.matches ? 'dark' : 'light')) === 'dark';
    const show = () => button.setAttribute('aria-pressed', dark());
    button.hidden = false;
    button.onclick = () => { root.dataset.theme = dark() ? 'light' : 'dark'; kept.set(root.dataset.theme); show(); };
    system.addEventListener('change', show);
    show();
  }

  function menu() {
    const button = document.querySelector('.menu'), bar = document.querySelector('.sidebar');
    const set = (open) => { bar.classList.toggle('open', open); button.setAttribute('aria-expanded', open); if (open) bar.scrollTop = 0; };
    button.onclick = (e) => { e.preventDefault(); set(!bar.classList.contains('open')); };
    button.onkeydown = (e) => { if (e.key === ' ') { e.preventDefault(); button.click(); } };
    document.addEventListener('keydown', (e) => { if (e.key === 'Escape' && bar.classList.contains('open')) { set(false); button.focus(); } });
    bar.querySelector('ul:not(.sections) [aria-current=page]')?.scrollIntoView({ block: 'center', behavior: 'instant' });
    scrollTo({ top: 0, behavior: 'instant' });
    if (location.hash) document.getElementById(decodeURIComponent(location.hash.slice(1)))?.scrollIntoView({ behavior: 'instant' });
  }

  // what a value is worth when it is sorted: a number where it begins with one, else text
  const NUMBER = /^[^\w.+−-]{0,2}([+−-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:e[+−-]?\d+)?)(?![\w.]*[a-z]\w*_|\w*-\w)/i;
  function worth(text) {
    const t = text.trim(), m = NUMBER.exec(t), n = m && /\d/.test(m[1]) ? Number(m[1].replaceAll(',', '').replaceAll('−', '-')) : NaN;
    return { t, n, empty: !t || /^(nan|none|–|—|-)$/i.test(t) };
  }

  function sortable(table) {
    const header = table.tHead?.rows[table.tHead.rows.length - 1], body = table.tBodies[0];
    if (!body) return;
    const rows = [...body.rows], cells = (i) => rows.map((r) => r.cells[i]).filter(Boolean);
    if (header) [...header.cells].forEach((th, i) => {  // figures stand to the right
      const values = cells(i).map((c) => worth(c.textContent)).filter((v) => !v.empty);
      if (values.length && values.every((v) => !Number.isNaN(v.n) && v.t.length < 40 && !/\d-\d/.test(v.t))) [th, ...cells(i)].forEach((c) => c.tagName === 'TD' || c === th ? c.classList.add('number') : 0);
      else cells(i).forEach((c) => { if (c.textContent.length > 20) c.classList.add(c.textContent.length > 60 ? 'long' : 'some'); });
    });
    if (!header || rows.length < 2 || rows.some((r) => r.cells.length !== header.cells.length || [...r.cells].some((c) => c.rowSpan > 1 || c.colSpan > 1)) || [...header.cells].some((c) => c.colSpan > 1)) return;
    if ([...header.cells].every((c) => !c.textContent.trim())) { table.tHead.hidden = true; return; }
    const by = (i, sign) => {
      const keyed = rows.map((r, at) => ({ r, at, v: worth(r.cells[i].textContent) }));
      const numbers = keyed.every((k) => k.v.empty || !Number.isNaN(k.v.n));
      keyed.sort((a, b) => (a.v.empty - b.v.empty) || sign * (numbers ? a.v.n - b.v.n || 0 : a.v.t.localeCompare(b.v.t, 'en', { numeric: true })) || a.at - b.at);
      body.append(...keyed.map((k) => k.r));
    };
    [...header.cells].forEach((th, i) => {
      const button = make('button', { type: 'button', class: 'sort', title: 'Sort' });
      button.append(...th.childNodes);
      if (!button.textContent.trim()) button.setAttribute('aria-label', `Sort by column ${i + 1}`);
      th.append(button);
      button.onclick = () => {
        const next = { ascending: 'descending', descending: '' }[th.getAttribute('aria-sort')] ?? 'ascending';
        [...header.cells].forEach((c) => c.removeAttribute('aria-sort'));
        if (next) { th.setAttribute('aria-sort', next); by(i, next === 'ascending' ? 1 : -1); } else body.append(...rows);
      };
    });
  }

  // what scrolls can be reached by keyboard
  function reach() {
    for (const e of all('.table, pre.out, pre.drawn, .math')) {
      const wide = e.scrollWidth > e.clientWidth + 1;
      if (wide) { e.tabIndex = 0; e.setAttribute('role', 'region'); e.setAttribute('aria-label', e.matches('.table') ? 'Table, scrolls sideways' : 'Scrolls sideways'); }
      else if (e.getAttribute('role') === 'region') for (const a of ['tabindex', 'role', 'aria-label']) e.removeAttribute(a);
    }
  }

  function code() {
    for (const box of all('.code')) {
      const button = make('button', { type: 'button', class: 'copy' }, 'copy');
      button.onclick = async () => {
        const text = box.querySelector('code').textContent.replace(/\n$/, '');
        let done = true;
        try { await navigator.clipboard.writeText(text); } catch { done = false; }
        button.textContent = done ? 'copied' : 'not allowed here';
        setTimeout(() => { button.textContent = 'copy'; }, 1500);
      };
      box.append(button);
    }
    const folds = all('details.fold');
    if (folds.length < 2) return;
    const button = make('button', { type: 'button', class: 'unfold', 'aria-pressed': 'false' }, 'Show all code');
    button.onclick = () => {
      const open = button.getAttribute('aria-pressed') === 'false';
      folds.forEach((f) => { f.open = open; });
      button.setAttribute('aria-pressed', open);
      button.textContent = open ? 'Hide all code' : 'Show all code';
    };
    document.querySelector('.lead').append(button);
  }

  function contents() {
    const toc = document.querySelector('.toc');
    if (!toc) return;
    const wide = matchMedia('(min-width: 75rem)'), fit = () => { toc.open = wide.matches; };
    wide.addEventListener('change', fit);
    fit();
    const links = new Map(all('a', toc).map((a) => [decodeURIComponent(a.hash.slice(1)), a]));
    const seen = new IntersectionObserver((entries) => {
      for (const e of entries) if (e.isIntersecting) { links.forEach((a) => a.classList.remove('now')); links.get(e.target.id).classList.add('now'); }
    }, { rootMargin: '-10% 0px -75% 0px' });
    links.forEach((_, id) => { const h = document.getElementById(id); if (h) seen.observe(h); });
  }

  function search() {
    const dialog = document.querySelector('dialog.search'), input = dialog.querySelector('input'), list = dialog.querySelector('.results'), count = dialog.querySelector('.count'), button = document.querySelector('.find');
    let asked;
    const index = () => asked ??= new Promise((resolve, reject) => { const s = make('script', { src: `${up}search.js` }); s.onload = () => resolve(window.mammoIndex); s.onerror = reject; document.head.append(s); });
    const open = () => { if (!dialog.open) dialog.showModal(); input.select(); index().then(find, () => { count.textContent = 'The index (search.js) is not there: build the site again.'; }); };
    const marked = (text, words) => {
      const at = Math.max(0, Math.min(...words.map((w) => text.toLowerCase().indexOf(w)).filter((i) => i >= 0), text.length) - 40), piece = (at ? '… ' : '') + text.slice(at, at + 220), p = make('p');
      let left = piece;
      for (let safe = 0; left && safe < 50; safe++) {
        const [i, w] = words.map((w) => [left.toLowerCase().indexOf(w), w]).filter(([i]) => i >= 0).sort((a, b) => a[0] - b[0])[0] ?? [-1, ''];
        if (i < 0) break;
        p.append(left.slice(0, i), make('mark', {}, left.slice(i, i + w.length)));
        left = left.slice(i + w.length);
      }
      p.append(left);
      return p;
    };
    async function find() {
      const words = input.value.toLowerCase().split(/\s+/).filter((w) => w.length > 1), entries = await index();
      const score = ([, title, heading, text, section]) => {
        const t = title.toLowerCase(), h = heading.toLowerCase(), x = text.toLowerCase();
        let sum = 0;
        for (const w of words) {
          const here = (h === w ? 60 : h.startsWith(w) ? 25 : h.includes(w) ? 15 : 0) + (t === w && !h ? 60 : t.includes(w) ? (h ? 4 : 20) : 0) + (x.includes(w) ? 3 + Math.min(3, x.split(w).length - 2) : 0);
          if (!here) return 0;
          sum += here;
        }
        return sum + (section === 'Reference' ? 0 : 2);
      };
      const hits = words.length ? entries.map((e) => [score(e), e]).filter(([s]) => s).sort((a, b) => b[0] - a[0]) : [];
      count.textContent = words.length ? `${hits.length} place${hits.length === 1 ? '' : 's'}${hits.length > 20 ? ', the 20 nearest' : ''}` : 'Type two letters or more.';
      list.replaceChildren(...hits.slice(0, 20).map(([, [url, title, heading, text, section]]) => make('li', {}, make('a', { href: up + url }, make('b', {}, heading || title), ' ', make('span', {}, heading ? `${section} · ${title}` : section), marked(text, words)))));
    }
    input.oninput = find;
    dialog.onkeydown = (e) => {
      const links = all('a', list), at = links.indexOf(document.activeElement);
      if (e.key === 'Escape') { e.preventDefault(); dialog.close(); }  // a search box would only be emptied
      if (e.key === 'ArrowDown') { e.preventDefault(); links[Math.min(at + 1, links.length - 1)]?.focus(); }
      if (e.key === 'ArrowUp') { e.preventDefault(); (at > 0 ? links[at - 1] : input).focus(); }
      if (e.key === 'Enter' && document.activeElement === input) { e.preventDefault(); links[0]?.click(); }
    };
    list.onclick = (e) => { if (e.target.closest('a')) dialog.close(); };
    button.hidden = false;
    button.onclick = open;
    document.addEventListener('keydown', (e) => { if (e.key === '/' && !e.ctrlKey && !e.metaKey && !/^(INPUT|TEXTAREA|SELECT)$/.test(document.activeElement?.tagName) && !dialog.open) { e.preventDefault(); open(); } });
  }

  document.addEventListener('DOMContentLoaded', () => {
    all('main table').forEach(sortable);
    if (!own) return;
    theme(); menu(); code(); contents(); search(); reach();
    addEventListener('resize', reach);
  });
})();
