// As apache-superset-extensions-cli writes it, for an extension without React.
const path = require('path');
const { ModuleFederationPlugin } = require('webpack').container;
const { publisher, name } = require('../extension.json');

module.exports = {
  entry: {},
  output: {
    clean: true,
    chunkFilename: '[name].[contenthash].js',
    path: path.resolve(__dirname, 'dist'),
    publicPath: 'auto',
  },
  resolve: { extensions: ['.ts', '.tsx', '.js'] },
  module: {
    rules: [{ test: /\.tsx?$/, use: 'ts-loader', exclude: /node_modules/ }],
  },
  plugins: [
    new ModuleFederationPlugin({
      name: `${publisher}_${name}`,
      filename: 'remoteEntry.[contenthash].js',
      exposes: { './index': './src/index.tsx' },
    }),
  ],
};
