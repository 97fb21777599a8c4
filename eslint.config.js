import { defineConfig, globalIgnores } from 'eslint/config'
import tseslint from 'typescript-eslint'

const wrongWay = (files, group, message) => ({
  files,
  ignores: ['**/*.test.ts'],
  rules: { 'no-restricted-imports': ['error', { patterns: [{ group, message }] }] },
})

export default defineConfig(
  globalIgnores(['node_modules/', '.deltapost/', 'docs/']),
  tseslint.configs.recommended,
  {
    files: ['**/*.ts'],
    extends: [tseslint.configs.recommendedTypeCheckedOnly],
    languageOptions: { parserOptions: { projectService: true, tsconfigRootDir: import.meta.dirname } },
    rules: {
      '@typescript-eslint/no-floating-promises': 'error',
      '@typescript-eslint/no-misused-promises': 'error',
      '@typescript-eslint/consistent-type-imports': ['error', { fixStyle: 'inline-type-imports' }],
      // An async function is a promise of its shape, also where today nothing is awaited.
      '@typescript-eslint/require-await': 'off',
      // Shapes here are closures without `this`, so a function taken out of one loses nothing.
      '@typescript-eslint/unbound-method': 'off',
    },
  },
  {
    rules: {
      '@typescript-eslint/no-explicit-any': 'error',
      '@typescript-eslint/no-unused-vars': ['error', { argsIgnorePattern: '^_', varsIgnorePattern: '^_' }],
      eqeqeq: ['error', 'always', { null: 'ignore' }],
      'max-lines': ['error', { max: 400 }],
      'max-lines-per-function': ['error', { max: 80 }],
      'no-empty': ['error', { allowEmptyCatch: false }],
    },
  },
  // A test file tells one story after the other, and its setup is one long function.
  { files: ['**/*.test.ts'], rules: { 'max-lines': ['error', { max: 800 }], 'max-lines-per-function': ['error', { max: 300 }] } },

  wrongWay(['outbox/**/*.ts'], ['**/services/**', '**/scripts/**', '**/test/**', 'express', 'kafkajs', 'pg', 'pino'], 'outbox/ knows no HTTP, no Kafka client and no service'),
  wrongWay(['services/runtime/**/*.ts'], ['**/outbox/**', '**/listener/**', '**/relay/**', '**/consumer/**', '**/jobs/**', '**/console/**', '**/scripts/**'], 'services/runtime/ is what services stand on'),
  wrongWay(['services/listener/**/*.ts'], ['**/relay/**', '**/consumer/**', '**/jobs/**', '**/console/**', '**/scripts/**'], 'services meet in a table, a topic or a file of outbox/'),
  wrongWay(['services/relay/**/*.ts'], ['**/listener/**', '**/consumer/**', '**/jobs/**', '**/console/**', '**/scripts/**'], 'services meet in a table, a topic or a file of outbox/'),
  wrongWay(['services/consumer/**/*.ts'], ['**/listener/**', '**/relay/**', '**/jobs/**', '**/console/**', '**/scripts/**'], 'services meet in a table, a topic or a file of outbox/'),
  wrongWay(['services/notices/**/*.ts'], ['**/listener/**', '**/relay/**', '**/consumer/**', '**/jobs/**', '**/console/**', '**/scripts/**'], 'services meet in a table, a topic or a file of outbox/'),
  wrongWay(['services/jobs/**/*.ts'], ['**/listener/**', '**/relay/**', '**/consumer/**', '**/console/**', '**/scripts/**'], 'jobs import outbox/ and services/runtime/'),
  wrongWay(['services/console/**/*.ts'], ['**/listener/**', '**/relay/**', '**/consumer/**', '**/scripts/**'], 'the console imports outbox/, services/runtime/ and services/jobs/'),
  {
    files: ['outbox/**/*.ts', 'services/**/*.ts'],
    ignores: ['services/runtime/config.ts', '**/*.test.ts'],
    rules: {
      'no-restricted-properties': ['error', { object: 'process', property: 'env', message: 'services/runtime/config.ts reads the environment' }],
    },
  },
)
