"The site: `pages` says what it holds, `reference` writes the pages of the modules, `plain` turns pages into HTML where Quarto is missing, `check` follows every link."
